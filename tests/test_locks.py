"""The two lock files: what `make install` installs is what `make run` and the tests have, and all that the appliance needs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def pins(name: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Version and hashes of each package."""
    found = {}
    for block in re.split(r"(?m)^(?=[A-Za-z0-9])", (ROOT / name).read_text("utf-8")):
        if match := re.match(r"([A-Za-z0-9._-]+)==(\S+)", block):
            found[match[1]] = match[2], frozenset(re.findall(r"sha256:[0-9a-f]{64}", block))
    return found


def test_the_systems_packages_are_those_that_are_tested() -> None:
    ours, all_of_them = pins("requirements-system.lock"), pins("requirements.lock")
    assert {name: all_of_them.get(name) for name in ours} == ours
    assert all(hashes for _, hashes in ours.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    names = (re.match(r"[A-Za-z0-9._-]+", line)[0] for line in project["dependencies"])  # type: ignore[index]
    needed = {re.sub(r"[-_.]+", "-", name).lower() for name in names}
    assert needed <= set(ours)
    assert not {"pytest", "mypy", "ruff"} & set(ours)
