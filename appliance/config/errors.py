"""Errors of the configuration.

ConfigError          a file of the owner's cannot be used; `problems` holds every reason at once
├── SourceError      the file cannot be read as text, or its text is no TOML or YAML
└── NotExpanded      a `${NAME}` that is needed now is set nowhere
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

import msgspec


class Severity(StrEnum):
    """Whether a file with this problem can be used."""

    WARNING = "warning"
    ERROR = "error"


class Problem(msgspec.Struct, frozen=True):
    """One thing wrong with a file. `line` counts from 1; `key` is empty when the whole file is meant."""

    file: str
    line: int
    key: str
    message: str
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        subject = f"{self.key}: " if self.key else ""
        return f"{self.file}:{self.line}: {subject}{self.message}"


class ConfigError(Exception):
    """A file of the owner's cannot be used. `problems` holds all errors and warnings by line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(
            "\n".join(str(problem) for problem in self.problems if problem.severity is Severity.ERROR)
        )


class SourceError(ConfigError):
    """The file cannot be read as text, or its text is no TOML or YAML."""


class NotExpanded(ConfigError):
    """A `${NAME}` that is needed now is set neither as a credential nor in the environment."""
