"""Whatever stands in a file: settings or a ConfigError, and lines that are right."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from appliance.config.errors import ConfigError, Problem
from appliance.config.expand import Variables
from appliance.config.load import check, load_appliance, load_network

BAD = "zz_bad_key"
NETWORK: dict[str, Any] = {
    "mode": "cluster",
    "interfaces": {"primary": {"type": "ethernet", "ip": "10.0.1.10"}, "usb": {"type": "usb"}},
    "cluster": {
        "name": "c",
        "node_id": "a",
        "nodes": [{"id": "a", "ip": "10.0.1.1"}, {"id": "b", "ip": "10.0.1.2"}],
    },
    "p2p": {"ice_servers": [{"url": "stun:a"}, {"url": "turn:b:1", "credential": "secret"}]},
    "api": {"port": 1, "tls": False},
}
TOML_NOISE = [
    f"# {BAD} = 1\n",
    "\n",
    "[text]\nmodel = '''x'''\n",
    f'[chat]\ndefault_persona = """\\\n  {BAD[:2]}y"""  # "\n',
    "[scheduler]\r\nqueue_limit = 3 # [gateway]\r\n",
    "[supervisor]\n",
]


def problems(name: str, content: bytes) -> list[Problem]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        return check(path, variables=Variables({"A": "1"}))


def mappings(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from mappings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from mappings(inner)


NASTY = [
    b"",
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"[" * 3000,
    b"{" * 3000,
    b"- " * 3000,
    b"? " * 3000,
    b"%YAML 1." + b"9" * 5000,
]
FRAGMENTS = st.lists(
    st.sampled_from(
        [
            "mode",
            "api",
            "gateway",
            "port",
            ": ",
            " = ",
            "\n",
            "  ",
            "[",
            "]",
            "{",
            "}",
            "- ",
            "'",
            '"',
            '"""',
            "&a",
            "*a",
            "!t ",
            "${A}",
            "${B}",
            "${",
            "1",
            "true",
            "#",
            ",",
            "|\n ",
            "? ",
            "---",
            "\\",
            "\u2028",
            "\t",
            "%",
            "p2p",
            "interfaces",
        ]
    ),
    max_size=25,
).map(lambda parts: "".join(parts).encode())


@pytest.mark.parametrize("content", NASTY)
def test_nasty_files_are_problems_at_most(content: bytes) -> None:
    for name in ("network.yaml", "appliance.toml"):
        assert all(problem.line >= 1 for problem in problems(name, content))


@settings(max_examples=250, deadline=None)
@given(st.binary(max_size=80) | FRAGMENTS)
@example(b"x: \x85\xe2\x80\xa8")
def test_any_bytes_load_or_raise_config_error(content: bytes) -> None:
    for load, name in ((load_appliance, "appliance.toml"), (load_network, "network.yaml")):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.write_bytes(content)
            error = None
            try:
                load(path, variables=Variables({"A": "1"}))
            except ConfigError as caught:
                error = caught
        if error is not None:
            count = content.count(b"\n") + 1
            assert error.problems
            assert all(1 <= problem.line <= count for problem in error.problems)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_bad_key_of_any_yaml_document_is_found_on_its_line(data: st.DataObject) -> None:
    document = copy.deepcopy(NETWORK)
    # Not the table of ports, whose values are tables themselves: any mapping will do.
    target = data.draw(st.sampled_from(list(mappings(document))))
    plain = st.none() | st.booleans() | st.integers() | st.text(max_size=30)
    value = data.draw(st.recursive(plain, lambda inner: st.lists(inner, max_size=3), max_leaves=5))
    items = [*target.items()]
    items.insert(data.draw(st.integers(0, len(items))), (BAD, value))
    target.clear()
    target.update(items)
    text = yaml.safe_dump(
        document,
        default_flow_style=data.draw(st.sampled_from([True, False, None])),
        allow_unicode=data.draw(st.booleans()),
        width=data.draw(st.sampled_from([20, 80, 1000])),
        sort_keys=False,
    )
    if data.draw(st.booleans()):
        text = f"# {BAD}\n---\n\n{text}"
    found = problems("network.yaml", text.encode())
    assert [problem.key.rpartition(".")[2] for problem in found] == [BAD], text
    assert f"{BAD}:" in text.split("\n")[found[0].line - 1]


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_bad_key_of_any_toml_document_is_found_on_its_line(data: st.DataObject) -> None:
    value = data.draw(
        st.sampled_from(
            [
                "1",
                f"'{BAD} = 1'",
                f'"""\n{BAD} = 1\n"""',
                f"[\n # {BAD}\n 1,\n]",
                "{ a = { b = 1 } }",
                "1979-05-27",
            ]
        )
    )
    key = data.draw(st.sampled_from([BAD, f'"{BAD}"', f"'{BAD}'", '"\\u007az_bad_key"', f"{BAD}.x.'y'"]))
    block = data.draw(
        st.sampled_from(
            [
                f"[gateway]\nprocesses = 1\n{key} = {value}\n",
                f"[ gateway ] # {BAD}\n\n\n{key}={value}\ndrain_s = 1\n",
                f"[gateway.{key}]\nx = {value}\n",
                f"[[gateway.{key}]]\nx = {value}\n[[gateway.{key}]]\n",
            ]
        )
    )
    blocks = data.draw(st.permutations(TOML_NOISE))
    blocks.insert(data.draw(st.integers(0, len(blocks))), block)
    if data.draw(st.booleans()):
        blocks = [
            f"gateway = {{ processes = 1, {key} = {value} }}\n",
            *(item for item in blocks if item is not block),
        ]
    text = "".join(blocks)
    found = problems("appliance.toml", text.encode())
    assert [problem.key for problem in found] == [f"gateway.{BAD}"], text
    line = text.split("\n")[found[0].line - 1]
    assert key in line
    assert not line.startswith("#")
