"""YAML text to a `Document`: nodes composed from PyYAML's events, nothing constructed.

Events rather than PyYAML's own nodes, because nodes have forgotten anchors and explicit tags, and
composing them recurses: a file of brackets would end in RecursionError. Here the depth is counted.
"""

from __future__ import annotations

from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from appliance.config.document import DEPTH_LIMIT, UNKNOWN, Document, KeyPath, LineIndex, dotted
from appliance.config.errors import Problem, SourceError
from appliance.config.yaml_scalars import plain_scalar


def parse_yaml(file: str, text: str) -> Document:
    """Raises SourceError with the one problem that keeps `text` from being YAML.

    Aliases, anchors, tags, duplicate keys and further documents are problems of the result.
    """
    composer = _Composer(file, text)
    try:
        data = composer.compose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = composer.index.line(mark.index) if mark else 1
        raise SourceError([Problem(file, line, "", f"{_reason(error)}, expected valid YAML")]) from None
    except yaml.reader.ReaderError as error:
        line = composer.index.line(error.position)
        message = "holds a control character, expected text"
        raise SourceError([Problem(file, line, "", message)]) from None
    except (ValueError, OverflowError):
        # PyYAML lets int() and chr() fail: %YAML 1.<5000 digits>, "\UFFFFFFFF".
        line = composer.line_reached()
        message = "an escape or a directive is out of range, expected valid YAML"
        raise SourceError([Problem(file, line, "", message)]) from None
    return Document(file, data, composer.lines, "mapping", tuple(composer.problems))


def _reason(error: yaml.MarkedYAMLError) -> str:
    reason = error.problem or "is not understood"
    # "could not find expected ':'" says little without what was being read.
    return f"{error.context}, {reason}" if error.context else reason


class _Composer:
    def __init__(self, file: str, text: str) -> None:
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []
        self.index = LineIndex(text)
        self._file = file
        self._text = text
        self._loader: yaml.SafeLoader | None = None

    def line_reached(self) -> int:
        return self.index.line(self._loader.index) if self._loader else 1

    def compose(self) -> dict[str, Any]:
        self._loader = yaml.SafeLoader(self._text)
        self._next()  # the start of the stream
        event = self._next()
        if isinstance(event, StreamEndEvent):
            return {}
        line = self._line(event)
        root = self._node((), self._next())
        self._next()  # the end of the document
        event = self._next()
        if isinstance(event, DocumentStartEvent):
            self._complain((), self._line(event), "a second document begins, expected one a file")
        if root is None or root is UNKNOWN:
            return {}
        if not isinstance(root, dict):
            self._complain((), line, "the file holds a single value, expected a mapping of keys to values")
            return {}
        return root

    def _next(self) -> Event:
        assert self._loader is not None
        event: Event = self._loader.get_event()  # type: ignore[no-untyped-call]
        return event

    def _node(self, path: KeyPath, event: Event) -> Any:
        """The value that begins with `event`. Recursion ends at DEPTH_LIMIT."""
        if isinstance(event, AliasEvent):
            self._complain(path, self._line(event), "is an alias, expected the value itself")
            return UNKNOWN
        assert isinstance(event, NodeEvent)
        known = self._allowed(path, event)
        if isinstance(event, ScalarEvent):
            value = self._scalar(path, event)
        else:
            if len(path) >= DEPTH_LIMIT:
                message = f"is nested too deeply, expected at most {DEPTH_LIMIT} levels"
                raise SourceError([Problem(self._file, self._line(event), "", message)])
            value = self._mapping(path) if isinstance(event, MappingStartEvent) else self._sequence(path)
        return value if known else UNKNOWN

    def _allowed(self, path: KeyPath, event: NodeEvent) -> bool:
        """Whether the value can be taken as it is. Names are not repeated: a secret may begin with & or !."""
        if event.anchor is not None:
            self._complain(path, self._line(event), "has an anchor, expected the value alone")
        tag = event.tag if isinstance(event, ScalarEvent | MappingStartEvent | SequenceStartEvent) else None
        if tag is not None:
            self._complain(path, self._line(event), "has a tag, expected the value alone")
        return tag is None

    def _scalar(self, path: KeyPath, event: ScalarEvent) -> Any:
        if any("\ud800" <= c <= "\udfff" for c in event.value):
            self._complain(path, self._line(event), "holds half a surrogate pair, expected text")
            return UNKNOWN
        return plain_scalar(event.value) if event.style is None else event.value

    def _sequence(self, path: KeyPath) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            item = (*path, len(items))
            self.lines[item] = self._line(event)
            items.append(self._node(item, event))
        return items

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            line = self._line(event)
            key = self._key(path, event)
            if key is None:
                self._discard(path, self._next())
                continue
            entry = (*path, key)
            if key in entries:
                first = self.lines[entry]
                self._complain(entry, line, f"is set a second time, expected once (first on line {first})")
                self._discard(entry, self._next())
                continue
            self.lines[entry] = line
            entries[key] = UNKNOWN  # so that a duplicate is known even while the first is being read
            entries[key] = self._node(entry, self._next())
        return entries

    def _key(self, path: KeyPath, event: Event) -> str | None:
        """The text of a key, None after a complaint."""
        if not isinstance(event, ScalarEvent):
            self._complain(path, self._line(event), "has a key that is no text, expected plain keys")
            self._discard((*path, "?"), event)  # one level deeper: keys of keys of keys must count too
            return None
        inside = self._scalar(path, event) is not UNKNOWN
        return event.value if self._allowed(path, event) and inside else None

    def _discard(self, path: KeyPath, event: Event) -> None:
        """Reads a value to its end and forgets it, its lines and its problems."""
        lines, problems = self.lines, self.problems
        self.lines, self.problems = {}, []
        self._node(path, event)
        self.lines, self.problems = lines, problems

    def _complain(self, path: KeyPath, line: int, message: str) -> None:
        self.problems.append(Problem(self._file, line, dotted(path), message))

    def _line(self, event: Event) -> int:
        assert event.start_mark is not None  # every event of a parser has one
        return self.index.line(event.start_mark.index)
