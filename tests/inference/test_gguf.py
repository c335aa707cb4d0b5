"""The reader of GGUF heads: what it finds, and that nothing hostile gets through or holds it up."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.inference import gguf as reader
from appliance.inference.errors import GgufBroken
from appliance.inference.gguf import FILE_TYPES, TENSOR_TYPES, Gguf, parse_gguf, read_gguf

from .gguf_files import (
    ARRAY,
    BOOL,
    DATA_BYTES,
    F64,
    METADATA,
    STRING,
    TENSORS,
    U8,
    U16,
    U32,
    U64,
    array,
    gguf,
    pair,
    shipped_model,
    tensor,
    text,
)

ARCHITECTURE = METADATA[0]
WHOLE = gguf()
HEAD_BYTES = len(WHOLE) - DATA_BYTES


def parse(data: bytes) -> Gguf:
    return parse_gguf(io.BytesIO(data), len(data))


def refused(data: bytes, words: str) -> None:
    with pytest.raises(GgufBroken, match=words):
        parse(data)


# --- what it finds ------------------------------------------------------------------------------------------------------


def test_the_shipped_model() -> None:
    head = read_gguf(shipped_model())
    assert (head.architecture, head.quantisation, head.context_tokens) == ("llama", "Q8_0", 1024)
    assert 4_900_000 < head.parameters < 5_100_000
    assert "<|system|>" in head.chat_template
    assert head.missing_bytes == 0
    assert head.size_bytes == shipped_model().stat().st_size


@pytest.mark.parametrize("version", [2, 3])
def test_all_that_it_reads(version: int) -> None:
    assert parse(gguf(version=version)) == Gguf(
        architecture="llama",
        name="Tiny",
        kind="model",
        quantisation="Q8_0",
        context_tokens=512,
        parameters=32 + 64,
        tensors=2,
        chat_template="{{ messages }}",
        causal=True,
        parts=1,
        size_bytes=len(WHOLE),
        needed_bytes=len(WHOLE),
    )


def test_what_a_file_need_not_say() -> None:
    head = parse(gguf([ARCHITECTURE]))
    assert (head.name, head.chat_template, head.context_tokens, head.parts) == ("", "", 0, 1)
    assert head.quantisation == "Q8_0", "the type of most elements"


@pytest.mark.parametrize(("kind", "layout"), [(U16, "<H"), (U32, "<I"), (U64, "<Q")])
def test_a_window_in_any_integer(kind: int, layout: str) -> None:
    assert (
        parse(
            gguf([ARCHITECTURE, pair("llama.context_length", kind, struct.pack(layout, 4096))])
        ).context_tokens
        == 4096
    )


def test_values_of_other_types_than_expected_count_as_absent() -> None:
    head = parse(
        gguf(
            [
                ARCHITECTURE,
                pair("llama.context_length", F64, struct.pack("<d", 1e300)),
                pair("general.name", U8, b"\x07"),
                pair("tokenizer.chat_template", ARRAY, array(U8, [])),
            ]
        )
    )
    assert (head.context_tokens, head.name, head.chat_template) == (0, "", "")


def test_an_encoder_a_part_and_an_adapter() -> None:
    head = parse(
        gguf(
            [
                pair("general.architecture", STRING, text("bert")),
                pair("general.type", STRING, text("adapter")),
                pair("bert.attention.causal", BOOL, b"\x00"),
                pair("split.count", U16, struct.pack("<H", 3)),
            ]
        )
    )
    assert (head.causal, head.parts, head.kind) == (False, 3, "adapter")


def test_another_alignment() -> None:
    metadata = [ARCHITECTURE, pair("general.alignment", U32, struct.pack("<I", 64))]
    data = gguf(metadata, [tensor("a", (2,), 0), tensor("b", (2,), 64)], data_bytes=72, alignment=64)
    assert parse(data).missing_bytes == 0
    assert parse(data[:-1]).missing_bytes == 1


def test_padding_after_the_last_tensor_may_lack() -> None:
    assert parse(WHOLE + bytes(28)).missing_bytes == 0
    assert parse(WHOLE).missing_bytes == 0


def test_bytes_that_are_no_text() -> None:
    assert parse(gguf([ARCHITECTURE, pair("general.name", STRING, text(b"\xff\xfe"))])).name == "\ufffd\ufffd"


def test_the_engine_knows_the_same_types() -> None:
    import xllamacpp

    engine = {
        each.value: each.name.removeprefix("GGML_TYPE_")
        for each in xllamacpp.ggml_type
        if each.name != "GGML_TYPE_COUNT"
    }
    assert engine == {number: name for number, (name, _, _) in TENSOR_TYPES.items()}
    assert {"Q4_K_M", "Q8_0", "F16"} <= set(FILE_TYPES.values())


# --- what it refuses ------------------------------------------------------------------------------------------------------

HUGE = struct.pack("<Q", 2**63)
BROKEN = {
    "empty": (b"", "ends in its head, at byte 0, in the magic"),
    "another format": (b"PK\x03\x04" + bytes(100), "not a GGUF file: it begins with b'PK"),
    "a model for TPUs": (b"\x1c\0\0\0TFL3" + bytes(100), "TensorFlow Lite model: .* 'make models-tpu'"),
    "old": (gguf(version=1), "version 1: the engine loads versions 2 and 3"),
    "new": (gguf(version=4), "version 4"),
    "big-endian": (b"GGUF\x00\x00\x00\x03" + bytes(16), "big-endian"),
    "many tensors": (b"GGUF" + struct.pack("<IQQ", 3, 2**40, 0), "number of tensors is 1099511627776"),
    "many keys": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "number of keys is 9223372036854775808"),
    "long key": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + HUGE, "length of 'key 1'"),
    "long text": (gguf([pair("general.name", STRING, HUGE)]), "length of 'general.name' is"),
    "long text unread": (gguf([pair("x", STRING, HUGE)]), "length of 'x' is"),
    "long array": (gguf([pair("x", ARRAY, struct.pack("<IQ", U8, 2**62))]), "length of 'x' is"),
    "long text in an array": (gguf([pair("x", ARRAY, array(STRING, [HUGE]))]), "length of a text in 'x'"),
    "many arrays": (
        gguf(pair(f"x{n}", ARRAY, struct.pack("<IQ", U8, 2**21) + bytes(2**21)) for n in range(3)),
        "more than 4194304 items",
    ),
    "nested arrays": (gguf([pair("x", ARRAY, array(ARRAY, [array(U8, [])]))]), "array of type 9"),
    "unknown type": (gguf([pair("x", 13, b"")]), "'x' is of type 13"),
    "empty key": (gguf([pair("", U8, b"\x00")]), "key 1 is empty"),
    "key twice": (gguf([ARCHITECTURE, ARCHITECTURE]), "'general.architecture' is there twice"),
    "no architecture": (gguf([]), "does not name its architecture"),
    "architecture as number": (gguf([pair("general.architecture", U8, b"\x01")]), "does not name its"),
    "alignment 0": (
        gguf([pair("general.alignment", U32, bytes(4))]),
        "alignment is 0, expected a power of two",
    ),
    "alignment 48": (gguf([pair("general.alignment", U32, struct.pack("<I", 48))]), "alignment is 48"),
    "alignment of 8 bits": (gguf([pair("general.alignment", U8, b"\x20")]), "alignment is of type 0"),
    "long tensor name": (gguf(tensors=[tensor("x" * 64, (1,), 0)]), "length of 'name of tensor 1' is 64"),
    "tensor twice": (gguf(tensors=[tensor("x", (1,), 0), tensor("x", (1,), 32)]), "'x' is there twice"),
    "dimensions": (gguf(tensors=[tensor("x", (1,) * 5, 0)]), "number of dimensions of 'x' is 5"),
    "many elements": (gguf(tensors=[tensor("x", (2**40, 2**40), 0)]), "is said to have"),
    "removed tensor type": (gguf(tensors=[tensor("x", (32,), 0, 4)]), "'x' is of type 4"),
    "unknown tensor type": (gguf(tensors=[tensor("x", (32,), 0, 99)]), "'x' is of type 99"),
    "row of half a block": (gguf(tensors=[tensor("x", (48,), 0, 8)]), "no multiple of Q8_0's 32 elements"),
    "offset": (gguf(tensors=[TENSORS[0], tensor("x", (32,), 96)]), "'x' begins at 96, expected at 128"),
}


@pytest.mark.parametrize(("data", "words"), BROKEN.values(), ids=BROKEN)
def test_broken(data: bytes, words: str) -> None:
    refused(data, words)


def test_a_head_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "HEAD_LIMIT_BYTES", HEAD_BYTES - 50)
    refused(WHOLE, f"its head is longer than {HEAD_BYTES - 50} bytes")


def test_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(GgufBroken, match="not a regular file"):
            read_gguf(path)
    with pytest.raises(IsADirectoryError):
        read_gguf(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_gguf(tmp_path / "none")


def test_a_file_that_shrinks_while_it_is_read() -> None:
    with pytest.raises(GgufBroken, match="became shorter"):
        parse_gguf(io.BytesIO(WHOLE[:100]), len(WHOLE))


# --- properties -----------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200).map(lambda data: b"GGUF\x03\x00\x00\x00" + data) | st.binary(max_size=50))
def test_arbitrary_bytes(data: bytes) -> None:
    try:
        found = parse(data)
    except GgufBroken:
        return
    assert found.size_bytes == len(data)


@given(st.data())
def test_mutated_bytes(data: st.DataObject) -> None:
    """A few bytes of the head replaced, removed or added."""
    changed = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, HEAD_BYTES))
        length = data.draw(st.integers(0, 8))
        changed[start : start + length] = data.draw(st.binary(max_size=8))
    try:
        found = parse(bytes(changed))
    except GgufBroken:
        return
    assert found.architecture
    assert found.tensors <= 2
    assert found.needed_bytes >= 0


def missing(data: bytes) -> int | None:
    """What lacks of a file; None when it ends in its head."""
    try:
        return parse(data).missing_bytes
    except GgufBroken as error:
        if "was not copied to its end" not in str(error):
            raise
        return None


@given(st.integers(0, len(WHOLE) - 1))
def test_truncated_anywhere(length: int) -> None:
    assert missing(WHOLE[:length]) in (None, len(WHOLE) - length)


@pytest.mark.parametrize("length", [0, 4, 30, 1_000, 100_000, 2_000_000, -1])
def test_the_shipped_model_truncated(length: int) -> None:
    data = shipped_model().read_bytes()
    cut = data[:length]
    assert missing(cut) == (None if len(cut) < 100_000 else len(data) - len(cut))
