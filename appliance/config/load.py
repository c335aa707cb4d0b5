"""From the owner's files to settings: for the supervisor, and for `coral-reef config`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from appliance.config.appliance import Appliance
from appliance.config.consistency import appliance_consistency, network_consistency
from appliance.config.document import Document, KeyPath
from appliance.config.errors import ConfigError, Problem, Severity
from appliance.config.expand import Reference, Variables, require_expanded
from appliance.config.network import Network, applies
from appliance.config.secret import Secret
from appliance.config.source import read_source
from appliance.config.validate import Validated, validate
from appliance.paths import Paths

T = TypeVar("T")


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """One file's settings. `references` are its values with `${NAME}`, by their key paths."""

    settings: T
    path: Path
    warnings: tuple[Problem, ...] = ()
    references: Mapping[KeyPath, Reference] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """Both files. Key paths of `references` begin with `appliance` or `network`."""

    appliance: Appliance
    network: Network
    warnings: tuple[Problem, ...] = ()
    references: Mapping[KeyPath, Reference] = field(default_factory=dict)


def load_appliance(
    path: Path, *, variables: Variables | None = None, apply: bool = False
) -> Loaded[Appliance]:
    """The settings of an `appliance.toml`; the defaults when there is no such file.

    A `${NAME}` that is not set is a warning and leaves the key's default; with `apply` it is an error.
    Raises ConfigError.
    """
    return _load(_APPLIANCE, path, variables, apply=apply)


def load_network(path: Path, *, variables: Variables | None = None, apply: bool = False) -> Loaded[Network]:
    """The settings of a `network.yaml`; otherwise like `load_appliance`.

    With `apply`, sections that the mode makes no use of may refer to names that are not set.
    """
    return _load(_NETWORK, path, variables, apply=apply)


def interpret_network(
    text: str, *, name: str = "network.yaml", variables: Variables | None = None, apply: bool = False
) -> Loaded[Network]:
    """The same of a text that is in no file yet; messages call it `name`. Raises ConfigError."""
    loaded = _interpret(_NETWORK, Path(name), text, variables)
    if apply:
        require_expanded(loaded)
    return loaded


def load(paths: Paths, *, variables: Variables | None = None, apply: bool = False) -> Settings:
    """Both files. Raises ConfigError with the problems of both."""
    problems: list[Problem] = []
    try:
        appliance = load_appliance(paths.appliance_toml, variables=variables, apply=apply)
    except ConfigError as error:
        problems += error.problems
    try:
        network = load_network(paths.network_yaml, variables=variables, apply=apply)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    references = {("appliance", *path): item for path, item in appliance.references.items()}
    references |= {("network", *path): item for path, item in network.references.items()}
    warnings = appliance.warnings + network.warnings
    return Settings(appliance.settings, network.settings, warnings, references)


def check(path: Path, *, variables: Variables | None = None) -> list[Problem]:
    """Everything wrong with one file, warnings included; its suffix says which of the two it is."""
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        suffixes = ", ".join(_KINDS)
        return [Problem(str(path), 1, "", f"is of an unknown kind, expected a name that ends in {suffixes}")]
    try:
        text = read_source(path)
        if text is None:
            return [Problem(str(path), 1, "", "does not exist, expected a file")]
        return list(_interpret(kind, path, text, variables).warnings)
    except ConfigError as error:
        return list(error.problems)


@dataclass(frozen=True)
class _Kind(Generic[T]):
    """One of the two files: its format, its settings, and what only it needs."""

    settings: type[T]
    parse: Callable[[str, str], Document]
    consistency: Callable[[Document, dict[str, Any]], list[Problem]]
    applies: Callable[[T, KeyPath], bool]


def _parse_toml(file: str, text: str) -> Document:
    from appliance.config.toml_document import parse_toml

    return parse_toml(file, text)


def _parse_yaml(file: str, text: str) -> Document:
    from appliance.config.yaml_document import parse_yaml  # PyYAML takes 30 ms to import

    return parse_yaml(file, text)


_APPLIANCE = _Kind(Appliance, _parse_toml, appliance_consistency, lambda _settings, _path: True)
_NETWORK = _Kind(Network, _parse_yaml, network_consistency, applies)
_KINDS: dict[str, _Kind[Any]] = {".toml": _APPLIANCE, ".yaml": _NETWORK, ".yml": _NETWORK}


def _load(kind: _Kind[T], path: Path, variables: Variables | None, *, apply: bool) -> Loaded[T]:
    text = read_source(path)
    if text is None:
        return Loaded(kind.settings(), path)
    loaded = _interpret(kind, path, text, variables)
    if apply:
        require_expanded(loaded)
    return loaded


def _interpret(kind: _Kind[T], path: Path, text: str, variables: Variables | None) -> Loaded[T]:
    document = kind.parse(str(path), text)
    found = validate(document, kind.settings, (variables or Variables.of_process()).get)
    problems = [*document.problems, *found.problems, *kind.consistency(document, found.data)]
    problems += [item.problem(Severity.WARNING) for item in found.references.values() if item.unset]
    problems.sort(key=lambda problem: problem.line)
    if any(problem.severity is Severity.ERROR for problem in problems):
        raise ConfigError(problems)
    settings = _converted(kind.settings, found)
    references = {
        key_path: replace(item, needed=kind.applies(settings, key_path))
        for key_path, item in found.references.items()
    }
    return Loaded(settings, path, tuple(problems), references)


def _converted(settings: type[T], found: Validated) -> T:
    for table, key, text in found.placeholders:
        table[key] = text
    return msgspec.convert(found.data, settings, dec_hook=_secret)


def _secret(kind: type, value: Any) -> Any:
    if kind is Secret:
        return Secret(value)
    raise NotImplementedError(f"no setting has the type {kind}")
