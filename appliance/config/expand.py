"""`${NAME}` inside a text: a systemd credential else an environment variable. `$${` means `${`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from appliance.config.document import KeyPath
from appliance.config.errors import NotExpanded, Problem, Severity
from appliance.config.source import read_regular_file

CREDENTIAL_LIMIT_BYTES = 64 * 1024

_REFERENCE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$\{")


class BadReference(ValueError):
    """A `${` without a name and `}`, or a name whose value is no text; the message completes "KEY: ..."."""


@dataclass(frozen=True)
class Variables:
    """Where names are looked up. `credentials` is systemd's folder, one file a name."""

    environment: Mapping[str, str]
    credentials: Path | None = None

    @classmethod
    def of_process(cls) -> Variables:
        """This process's environment and credentials."""
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        return cls(os.environ, Path(folder) if folder else None)

    def get(self, name: str) -> str | None:
        """The value of `name`, None when it is not set. Raises BadReference, never naming the value."""
        if self.credentials is not None and (value := self._credential(self.credentials / name)) is not None:
            return value
        value = self.environment.get(name)
        if value is not None and not value.isascii():
            try:
                value.encode()  # Python smuggles bytes that are not UTF-8 as surrogates
            except UnicodeEncodeError:
                raise BadReference(f"the variable {name} is no UTF-8, expected text") from None
        return value

    def _credential(self, path: Path) -> str | None:
        subject = f"the credential {path.name}"
        try:
            content = read_regular_file(path, CREDENTIAL_LIMIT_BYTES)
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            raise BadReference(f"{subject} cannot be read, expected a file with its value") from None
        if content is None:
            limit = f"{CREDENTIAL_LIMIT_BYTES // 1024} KiB"
            raise BadReference(f"{subject} is larger than {limit}, expected less")
        try:
            value = content.decode().removesuffix("\n")
        except UnicodeDecodeError:
            raise BadReference(f"{subject} is no UTF-8, expected text") from None
        if "\0" in value:
            raise BadReference(f"{subject} holds a NUL character, expected text")
        return value


@dataclass(frozen=True)
class Expanded:
    """What became of a text that refers to `names`: `value` is None when some are `unset`."""

    value: str | None
    names: tuple[str, ...] = ()
    unset: tuple[str, ...] = ()


def expand(text: str, lookup: Callable[[str], str | None]) -> Expanded:
    """Expands `text` once; values are not expanded again. Raises BadReference."""
    values: dict[str, str | None] = {}

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        name = match[1]
        if name is None:
            raise BadReference("has ${ without a name and }, expected ${NAME}, or $${ for the characters ${")
        if name not in values:
            values[name] = lookup(name)
        return values[name] or ""

    value = _REFERENCE.sub(replace, text)
    unset = tuple(name for name, found in values.items() if found is None)
    return Expanded(None if unset else value, tuple(values), unset)


def references_only(text: str, mask: str) -> str:
    """`text` with its `${NAME}` left and everything else hidden."""
    parts: list[str] = []
    end = 0
    for match in _REFERENCE.finditer(text):
        if match[1] is None:
            continue
        if match.start() > end:
            parts.append(mask)
        parts.append(match[0])
        end = match.end()
    if end < len(text):
        parts.append(mask)
    return "".join(parts)


@dataclass(frozen=True)
class Reference:
    """A value of a file that refers to names. `text` is fit to be shown.

    `needed`: the mode that is set makes use of the value.
    """

    file: str
    line: int
    key: str
    text: str
    names: tuple[str, ...]
    unset: tuple[str, ...]
    needed: bool = True

    def problem(self, severity: Severity) -> Problem:
        """That names are not set."""
        names = ", ".join(f"${{{name}}}" for name in self.unset)
        verb = "is" if len(self.unset) == 1 else "are"
        message = f"{names} {verb} not set, expected a credential or an environment variable of that name"
        return Problem(self.file, self.line, self.key, message, severity)


class HasReferences(Protocol):
    """Settings that remember where they came from."""

    @property
    def references(self) -> Mapping[KeyPath, Reference]: ...


def require_expanded(settings: HasReferences) -> None:
    """Raises NotExpanded when the settings, as they are to be applied, need a name that is not set."""
    problems = [
        reference.problem(Severity.ERROR)
        for reference in settings.references.values()
        if reference.unset and reference.needed
    ]
    if problems:
        raise NotExpanded(problems)
