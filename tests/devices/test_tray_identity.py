"""What may stand in a tray's memory, and what may not."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from appliance.devices.errors import BadTrayIdentity
from appliance.devices.tray_identity import (
    IDENTITY_LIMIT_BYTES,
    MEMORY_LIMIT_BYTES,
    TrayIdentity,
    parse,
    read,
)

GOOD = b'{"format": 1, "id": "reef-0042", "persona": "marina", "slots": 16, "notes": "first of its kind"}'
IDENTITY = TrayIdentity(format=1, id="reef-0042", persona="marina", slots=16, notes="first of its kind")


def test_a_good_one() -> None:
    assert parse(GOOD) == IDENTITY
    assert parse(b' {"format":1,"id":"a"}\n') == TrayIdentity(format=1, id="a")


@pytest.mark.parametrize("padding", [b"\xff", b"\0"])
def test_padding(padding: bytes) -> None:
    assert parse(GOOD + padding * 30_000) == IDENTITY
    assert parse(padding * 32_768) is None
    assert parse(b"") is None
    assert parse(b"\n" + padding * 7) is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{}", "missing required field `format`"),
        (b'{"format": 2, "id": "a"}', "`\\$.format`"),
        (b'{"format": 1, "id": ""}', "`\\$.id`"),
        (b'{"format": 1, "id": "a b"}', "`\\$.id`"),
        (b'{"format": 1, "id": "../../etc"}', "`\\$.id`"),
        (b'{"format": 1, "id": "a\\n"}', "`\\$.id`"),
        (b'{"format": 1, "id": 7}', "Expected `str`, got `int`"),
        (b'{"format": 1, "id": "a", "persona": "x/y"}', "`\\$.persona`"),
        (b'{"format": 1, "id": "a", "slots": 65}', "`\\$.slots`"),
        (b'{"format": true, "id": "a"}', "`\\$.format`"),
        (b'{"format": 1, "id": "a", "mood": {}}', "unknown field `mood`"),
        (b"[" * 200_000, "is no tray identity|nested too deeply"),
        (b'{"format": 1, "id": ' + b'{"a":' * 40_000, "is no tray identity|nested too deeply"),
        (b'{"format": 1, "id": "\xff\xfe"}', "is no tray identity"),
        (GOOD[:-1], "truncated"),
        (GOOD + GOOD, "is no tray identity"),
        (GOOD + b"\xff" + GOOD, "is no tray identity"),
        (b" " * IDENTITY_LIMIT_BYTES + GOOD, f"is longer than {IDENTITY_LIMIT_BYTES} bytes"),
    ],
)
def test_bad_ones(data: bytes, message: str) -> None:
    with pytest.raises(BadTrayIdentity, match=message) as caught:
        parse(data)
    assert len(str(caught.value)) <= 512


async def test_files(tmp_path: Path) -> None:
    path = tmp_path / "nvmem"
    assert await read(path) is None
    path.write_bytes(GOOD + b"\xff" * 1000)
    assert await read(path) == IDENTITY
    path.write_bytes(GOOD + b"\xff" * MEMORY_LIMIT_BYTES)
    with pytest.raises(BadTrayIdentity, match="is larger than"):
        await read(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadTrayIdentity, match="is no file"):
        await read(tmp_path / "pipe")  # nobody writes to it: it must not wait
    with pytest.raises(BadTrayIdentity, match=r"is no file|Is a directory"):
        await read(tmp_path)
    with pytest.raises(BadTrayIdentity, match="cannot be read"):
        await read(path / "below-a-file")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
near_misses = st.fixed_dictionaries(
    {"format": st.just(1) | json_values, "id": st.just("a") | json_values},
    optional={"persona": json_values, "slots": json_values, "notes": json_values, "more": json_values},
)


@given(st.binary() | json_values.map(msgspec.json.encode) | near_misses.map(msgspec.json.encode))
@example(GOOD)
def test_whatever_it_holds(data: bytes) -> None:
    """An identity within its limits, nothing, or one kind of error."""
    try:
        found = parse(data)
    except BadTrayIdentity:
        return
    if found is not None:
        assert found == parse(msgspec.json.encode(found) + b"\xff\xff")
        assert found.format == 1
        assert 1 <= len(found.id) <= 64
        assert len(found.persona) <= 63
        assert len(found.notes) <= 4096
