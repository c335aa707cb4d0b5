"""Changing one value of network.yaml as a person would: everything else, comments and order included, stays as it is.

A path is written as the messages about the file write it: `interfaces.primary.ip`, `vlans[0].id`. A value is YAML: `10.0.0.5`,
`true`, `[1.1.1.1, 9.9.9.9]`, `{id: 10, parent: primary}`.
"""

from __future__ import annotations

import io
import itertools
import re
from typing import Any

from appliance.config.source import FILE_LIMIT_BYTES

Step = str | int

_STEP = re.compile(r"(?P<key>[A-Za-z0-9_-]{1,64})|\[(?P<number>[0-9]{1,4})\]")

#: Deeper than any setting is.
_DEPTH_LIMIT = 16

VALUE_LIMIT_CHARS = 4096


class EditError(Exception):
    """Why a text cannot be changed so; the message says what was expected."""


def steps(path: str) -> tuple[Step, ...]:
    """`vlans[0].id` as ("vlans", 0, "id"). EditError."""
    found: list[Step] = []
    position = 0
    while position < len(path):
        if found and path[position] == ".":
            position += 1
        match = _STEP.match(path, position)
        if match is None or (match["number"] is not None and not found):
            raise EditError(
                f"{path[:100]!r} is no path, expected one like interfaces.primary.ip or vlans[0].id"
            )
        if match["key"] is not None and position and path[position - 1] != ".":
            raise EditError(f"{path[:100]!r} is no path, expected a dot before {match['key']}")
        found.append(match["key"] if match["number"] is None else int(match["number"]))
        position = match.end()
    if not found or path.endswith("."):
        raise EditError("the path is empty or ends with a dot, expected one like interfaces.primary.ip")
    if len(found) > _DEPTH_LIMIT:
        raise EditError(f"the path has {len(found)} parts, expected at most {_DEPTH_LIMIT}")
    return tuple(found)


def with_value(text: str, path: str, value: str) -> str:
    """`text` with that value at `path`; tables on the way are made, and the item after a list's last is added. EditError."""
    way = steps(path)
    if len(value) > VALUE_LIMIT_CHARS:
        raise EditError(f"the value has {len(value)} characters, expected at most {VALUE_LIMIT_CHARS}")
    data = _loaded(text)
    new = _loaded(value, "the value")
    here = data
    for step, following in itertools.pairwise(way):
        here = _child(here, step, [] if isinstance(following, int) else {}, path)
    _check(here, way[-1], path)
    if isinstance(here, list) and way[-1] == len(here):
        here.append(new)
    else:
        here[way[-1]] = new
    return _dumped(data)


def without(text: str, path: str) -> str:
    """`text` without what is at `path`; a table or list that is empty then goes, too. EditError when there is nothing."""
    way = steps(path)
    data = _loaded(text)
    passed: list[tuple[Any, Step]] = []
    here = data
    for step in way:
        _check(here, step, path)
        if (isinstance(step, int) and step >= len(here)) or (isinstance(step, str) and step not in here):
            raise EditError(f"{path} is not set")
        passed.append((here, step))
        here = here[step]
    for number, (parent, step) in enumerate(reversed(passed)):
        if number and parent[step]:
            break
        del parent[step]
    return _dumped(data)


def _child(here: Any, step: Step, empty: Any, path: str) -> Any:
    _check(here, step, path)
    if isinstance(here, list):
        assert isinstance(step, int)
        if step == len(here):
            here.append(empty)
        return here[step]
    if here.get(step) is None:
        here[step] = empty
    return here[step]


def _check(here: Any, step: Step, path: str) -> None:
    """EditError unless `here` can have that."""
    if isinstance(step, int):
        if not isinstance(here, list):
            raise EditError(f"{path}: [{step}] stands behind something that is no list")
        if step > len(here):
            raise EditError(f"{path}: the list has {len(here)} items, expected [{len(here)}] for a new one")
    elif not isinstance(here, dict):
        raise EditError(f"{path}: {step} stands behind something that is no mapping")


def _yaml() -> Any:
    from ruamel.yaml import YAML  # 60 ms

    yaml = YAML(typ="rt", pure=True)
    yaml.preserve_quotes = True
    yaml.width = 10_000
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _loaded(text: str, what: str = "the text") -> Any:
    from ruamel.yaml.error import YAMLError

    if len(text.encode("utf-8", "surrogatepass")) > FILE_LIMIT_BYTES:
        raise EditError(f"{what} has more than {FILE_LIMIT_BYTES // 1024} KiB")
    try:
        found = _yaml().load(text)
    except (YAMLError, ValueError, RecursionError, TypeError, AttributeError, KeyError, IndexError) as error:
        # The library raises all of these for texts that are no YAML.
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EditError(f"{what} is no YAML: {first}") from None
    return {} if found is None and what == "the text" else found


def _dumped(data: Any) -> str:
    from ruamel.yaml.error import YAMLError

    out = io.StringIO()
    try:
        _yaml().dump(data, out)
    except (YAMLError, ValueError, RecursionError, TypeError, AttributeError) as error:
        raise EditError(f"this cannot be written as YAML: {str(error)[:200]}") from None
    return out.getvalue()
