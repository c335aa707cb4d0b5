"""One value changes, the rest stays."""

from __future__ import annotations

import contextlib
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config.edit import EditError, steps, with_value, without
from appliance.config.yaml_document import parse_yaml

EXAMPLES = Path(__file__).parents[2] / "appliance/config/examples"

TEXT = dedent("""\
    # The network of the tower
    mode: server
    interfaces:
      primary:   # the SFP+ port
        type: ethernet
        ip: 192.168.1.100
        dns: [192.168.1.1]
    vlans:
      - id: 10   # management
        parent: primary
    """)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("mode", ("mode",)),
        ("interfaces.primary.ip", ("interfaces", "primary", "ip")),
        ("vlans[0].id", ("vlans", 0, "id")),
        ("a[1][2].b", ("a", 1, 2, "b")),
    ],
)
def test_steps(path: str, found: tuple[str | int, ...]) -> None:
    assert steps(path) == found


@pytest.mark.parametrize(
    "path", ["", ".", "a.", ".a", "a..b", "[0]", "a[x]", "a b", "a[0]b", "a." * 20 + "a"]
)
def test_no_path(path: str) -> None:
    with pytest.raises(EditError):
        steps(path)


def test_only_what_is_meant_changes() -> None:
    assert with_value(TEXT, "interfaces.primary.ip", "10.0.0.5") == TEXT.replace("192.168.1.100", "10.0.0.5")
    assert with_value(TEXT, "vlans[0].id", "20") == TEXT.replace("id: 10 ", "id: 20 ")
    assert with_value(TEXT, "interfaces.primary.dns", "[1.1.1.1, 9.9.9.9]") == TEXT.replace(
        "[192.168.1.1]", "[1.1.1.1, 9.9.9.9]"
    )


def test_what_is_not_there_is_made() -> None:
    more = with_value(TEXT, "interfaces.secondary.type", "ethernet")
    more = with_value(more, "vlans[1]", "{id: 20, parent: primary}")
    data = parse_yaml("network.yaml", more).data
    assert data["interfaces"]["secondary"] == {"type": "ethernet"}
    assert data["vlans"] == [{"id": 10, "parent": "primary"}, {"id": 20, "parent": "primary"}]
    assert "# the SFP+ port" in more
    assert parse_yaml("network.yaml", with_value("", "vlans[0].id", "5")).data == {"vlans": [{"id": 5}]}


def test_what_goes_takes_an_empty_table_along() -> None:
    less = without(TEXT, "vlans[0].id")
    assert parse_yaml("network.yaml", less).data["vlans"] == [{"parent": "primary"}]
    assert "vlans" not in parse_yaml("network.yaml", without(less, "vlans[0].parent")).data
    assert without(TEXT, "interfaces.primary.dns") == TEXT.replace("    dns: [192.168.1.1]\n", "")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("interfaces.wifi", "is not set"),
        ("mode.x", "no mapping"),
        ("interfaces[0]", "no list"),
        ("vlans[7]", "the list has 1 items"),
        ("vlans[1]", "is not set"),
    ],
)
def test_what_cannot_go(path: str, message: str) -> None:
    with pytest.raises(EditError, match=message):
        without(TEXT, path)


@pytest.mark.parametrize("path", ["mode.x", "interfaces[0]", "vlans[2].id", "vlans.id"])
def test_what_cannot_be_set(path: str) -> None:
    with pytest.raises(EditError):
        with_value(TEXT, path, "1")


@pytest.mark.parametrize("value", ["[", "{a: b", "*x", "'", "x" * 5000])
def test_no_value(value: str) -> None:
    with pytest.raises(EditError):
        with_value(TEXT, "mode", value)


@pytest.mark.parametrize("name", ["local", "server", "cluster", "p2p_hub", "vlans"])
def test_the_examples_survive(name: str) -> None:
    text = (EXAMPLES / f"{name}.yaml").read_text("utf-8")
    before = parse_yaml("x", text).data
    after = parse_yaml("x", with_value(text, "mode", "local")).data
    assert after == {**before, "mode": "local"}
    assert [line for line in text.splitlines() if "#" in line] == [
        line for line in with_value(text, "mode", "local").splitlines() if "#" in line
    ]


@given(
    text=st.one_of(st.text(max_size=60), st.just(TEXT)),
    path=st.one_of(st.text(max_size=20), st.sampled_from(["mode", "vlans[0].id", "a.b[0]"])),
    value=st.text(max_size=30),
)
def test_any_text(text: str, path: str, value: str) -> None:
    with contextlib.suppress(EditError):
        assert isinstance(with_value(text, path, value), str)
    with contextlib.suppress(EditError):
        assert isinstance(without(text, path), str)
