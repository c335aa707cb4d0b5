"""Lines of keys, found in documents that are hard to read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.config.document import DEPTH_LIMIT, KeyPath, LineIndex, TooDeep, dotted, quoted
from appliance.config.toml_lines import toml_lines
from appliance.config.yaml_scalars import plain_scalar

TRICKY = '''\
# a = 1
title = """
[fake]
a = 1 \\"""
""""" # two quotes touch the end

[a."b.c".'d']  # fake = 1
x.y = 1
"q\\u0041" = 'z = 1'

[[list]]
n = [ # comment ]
  1, [2,
  3], { k = "]", l = [
    4 ] },
]
[list.sub]
m = \'\'\'
n = 2\'\'\'\'
[[list]]
[[list.deep]]
[list.deep.er]
when = 1979-05-27 07:32:00
[a]
after = 1
'''


def test_tricky_document() -> None:
    tomli.loads(TRICKY)
    assert toml_lines(TRICKY) == {
        ("title",): 2,
        ("a",): 24,
        ("a", "b.c"): 7,
        ("a", "b.c", "d"): 7,
        ("a", "b.c", "d", "x"): 8,
        ("a", "b.c", "d", "x", "y"): 8,
        ("a", "b.c", "d", "qA"): 9,
        ("a", "after"): 25,
        ("list",): 11,
        ("list", 0): 11,
        ("list", 0, "n"): 12,
        ("list", 0, "n", 0): 13,
        ("list", 0, "n", 1): 13,
        ("list", 0, "n", 1, 0): 13,
        ("list", 0, "n", 1, 1): 14,
        ("list", 0, "n", 2): 14,
        ("list", 0, "n", 2, "k"): 14,
        ("list", 0, "n", 2, "l"): 14,
        ("list", 0, "n", 2, "l", 0): 15,
        ("list", 0, "sub"): 17,
        ("list", 0, "sub", "m"): 18,
        ("list", 1): 20,
        ("list", 1, "deep"): 21,
        ("list", 1, "deep", 0): 21,
        ("list", 1, "deep", 0, "er"): 22,
        ("list", 1, "deep", 0, "er", "when"): 23,
    }


class Writer:
    """Writes a random valid TOML document and notes the line of each path."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self.text = ""
        self.lines: dict[KeyPath, int] = {}
        self._draw = draw
        self._count = 0

    def document(self) -> None:
        self.pairs((), 0)
        for _ in range(self.number(3)):
            self.header((), 0)

    def header(self, above: KeyPath, depth: int) -> None:
        shown, name = self.key()
        # A header repeats the names above it, without the numbers of their items.
        parts = [basic(part) for part in above if isinstance(part, str)]
        full = self.pick([".", " . ", ".\t"]).join([*parts, shown])
        path = (*above, name)
        items = self.number(2)
        for item in range(items + 1):
            self.noise()
            self.lines.setdefault(path, self.line)
            inner = (*path, item) if items else path
            self.lines[inner] = self.line
            self.text += (f"[[{full}]]" if items else f"[ {full} ]") + self.pick([" # [x]", ""]) + "\n"
            self.pairs(inner, 0)
            if depth < 2 and self.number(1):
                self.header(inner, depth + 1)

    def pairs(self, path: KeyPath, depth: int) -> None:
        for _ in range(self.number(3)):
            self.noise()
            self.pair(path, depth)
            self.text += self.pick(["\n", " # k = 1\n", "\r\n"])

    def pair(self, path: KeyPath, depth: int) -> None:
        for number in range(self.number(1) + 1):
            shown, name = self.key()
            path = (*path, name)
            self.lines[path] = self.line
            self.text += (" . " if number else "") + shown
        self.text += self.pick([" = ", "=", "\t=\t"])
        self.value(path, depth)

    def value(self, path: KeyPath, depth: int) -> None:
        kind = self.number(4) if depth < 3 else 0
        if kind < 3:
            self.text += self.pick(
                [
                    "1",
                    "true",
                    "1e5",
                    "2020-01-02 03:04:05Z",
                    '""',
                    "''",
                    '"\\"#[\\\\"',
                    "'\\'",
                    '"""\n[k0]\nk1 = 1\n"""',
                    "'''k2 = [\n'''''",
                    '"""\\""\\\n"""""',
                    "''''a'\n'''",
                    '"k3 = {"',
                ]
            )
        elif kind == 3:
            self.text += "["
            for item in range(self.number(3)):
                self.text += self.pick(["", "\n", " # ]\n", "\n\n# , k = 1\n\t"])
                self.lines[(*path, item)] = self.line
                self.value((*path, item), depth + 1)
                self.text += self.pick([",", " ,", "\n,"])
            self.text += self.pick(["]", "\n]", " # [\n]"])
        else:
            self.text += "{ "
            for item in range(self.number(2)):
                self.text += ", " if item else ""
                self.pair(path, depth + 1)
            self.text += " }"

    def key(self) -> tuple[str, str]:
        self._count += 1
        name = self._draw(st.text(max_size=3)) + f"k{self._count}"
        choices = [basic(name)]
        if all(c.isprintable() and c != "'" for c in name):
            choices.append(f"'{name}'")
        bare = f"b{self._count}-_"
        shown, meant = self.pick([(bare, bare), *((shown, name) for shown in choices)])
        return str(shown), str(meant)

    def noise(self) -> None:
        self.text += self.pick(["", "\n", "# [k]\n", "  \t", '\n# """\n', "\r\n"])

    def number(self, most: int) -> int:
        return int(self._draw(st.integers(0, most)))

    def pick(self, options: list[Any]) -> Any:
        return self._draw(st.sampled_from(options))

    @property
    def line(self) -> int:
        return self.text.count("\n") + 1


def basic(key: str) -> str:
    """A key as a basic string, which for TOML may not hold a bare DEL."""
    return json.dumps(key, ensure_ascii=False).replace("\x7f", "\\u007f")


def paths(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from paths(inner, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield (*path, number)
            yield from paths(inner, (*path, number))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_key_of_any_toml_document(data: st.DataObject) -> None:
    writer = Writer(data.draw)
    writer.document()
    assert set(paths(tomli.loads(writer.text))) == set(writer.lines)
    assert toml_lines(writer.text) == writer.lines


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab.=[]{}'\"#,\n\r \\1", max_size=60))
def test_valid_toml_by_chance(text: str) -> None:
    lines = toml_lines(text)
    try:
        data = tomli.loads(text)
    except tomli.TOMLDecodeError:
        return
    assert set(paths(data)) == set(lines)


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 50, "[" + "a." * 50 + "a]", "a = " + "{a=" * 50, "a." * 99999]
)
def test_depth_is_bounded(text: str) -> None:
    with pytest.raises(TooDeep) as caught:
        toml_lines("\n\n" + text)
    assert caught.value.line == 3
    fits = "a" + ".a" * (DEPTH_LIMIT - 1)
    assert len(toml_lines(f"{fits} = 1")) == DEPTH_LIMIT


def test_line_index_counts_line_feeds_only() -> None:
    index = LineIndex("a\r\nb\u2028c\n\n")
    assert [index.line(offset) for offset in range(8)] == [1, 1, 1, 2, 2, 2, 2, 3]


def test_dotted_and_quoted() -> None:
    assert dotted(("p2p", "ice_servers", 1, "url")) == "p2p.ice_servers[1].url"
    assert dotted(("a b", "", "c.d")) == '"a b".""."c.d"'
    assert quoted('\x1b[1m"\u202e\ud800') == '"\\u001b[1m\\"\\u202e\\ud800"'


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((word, None) for word in ("", "~", "null", "Null", "NULL")),
        *((word, True) for word in ("true", "True", "TRUE")),
        *((word, False) for word in ("false", "False", "FALSE")),
        *(
            (word, word)
            for word in ("on", "off", "yes", "No", "y", "nULL", "tRUE", "12:34:56", "1_000", "0b1")
        ),
        *(
            (word, word)
            for word in ("2020-01-01", "192.168.1.1", "5gbps", "0o8", "0xg", ".", "-", "+.e1", "<<")
        ),
        ("0", 0),
        ("-12", -12),
        ("+7", 7),
        ("010", 10),
        ("0o17", 15),
        ("0xFf", 255),
        ("1.5", 1.5),
        ("-.5e+3", -500.0),
        ("1.", 1.0),
        ("1e3", 1000.0),
        (".inf", float("inf")),
        ("-.INF", float("-inf")),
        ("9" * 5000, float("inf")),
        ("-" + "9" * 5000, float("-inf")),
    ],
)
def test_plain_scalars_of_yaml_1_2(text: str, value: object) -> None:
    found = plain_scalar(text)
    assert found == value
    assert type(found) is type(value)


def test_not_a_number() -> None:
    assert str(plain_scalar(".nan")) == "nan"
