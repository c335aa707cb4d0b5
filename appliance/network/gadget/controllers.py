"""The USB device controllers of the machine (UDC), in sysfs: who there is, and how far a desktop has come with one.

Documentation/ABI/stable/sysfs-class-udc.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

_LIMIT_BYTES = 256

#: The speeds that a gadget may be told to keep to; the kernel's words.
_SPEEDS = frozenset({"low-speed", "full-speed", "high-speed", "super-speed", "super-speed-plus"})


class Phase(StrEnum):
    """How far the desktop has come: the kernel's `usb_device_state`, in three."""

    AWAY = "away"  # no cable, or nobody at its other end; asleep, which is also what dwc2 says of a cable that was pulled
    HALFWAY = "halfway"  # it has begun to ask who we are
    CONFIGURED = "configured"  # it uses us


_PHASES = {
    "not attached": Phase.AWAY,
    "suspended": Phase.AWAY,
    "attached": Phase.HALFWAY,
    "powered": Phase.HALFWAY,
    "reconnecting": Phase.HALFWAY,
    "unauthenticated": Phase.HALFWAY,
    "default": Phase.HALFWAY,
    "addressed": Phase.HALFWAY,
    "configured": Phase.CONFIGURED,
}


@dataclass(frozen=True)
class Controller:
    """`max_speed` and `speed` are in the kernel's words, empty when it does not say. `gadget` is the one that it runs, empty when
    it runs none, None when it does not tell."""

    name: str
    phase: Phase
    state: str
    max_speed: str = ""
    speed: str = ""
    gadget: str | None = None


def controllers(folder: Path) -> list[Controller]:
    """All of them, `dummy_udc.2` before `dummy_udc.10`; none when the class is not there. `folder` is /sys/class/udc."""
    try:
        names = [each.name for each in folder.iterdir()]
    except OSError:
        return []
    return [look(folder / name) for name in sorted(names, key=_natural)]


def look(folder: Path) -> Controller:
    """One controller. What it does not say, or says in words that nobody knows, counts as away."""
    state = _attribute(folder / "state")
    return Controller(
        folder.name,
        _PHASES.get(state, Phase.AWAY),
        state,
        max_speed=_speed(folder / "maximum_speed"),
        speed=_speed(folder / "current_speed"),
        gadget=_attribute(folder / "function") if (folder / "function").exists() else None,
    )


def _speed(path: Path) -> str:
    word = _attribute(path)
    return word if word in _SPEEDS else ""


def _attribute(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_LIMIT_BYTES).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """A key by which numbers in names count as numbers."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(part.isdecimal(), int(part), "") if part.isdecimal() else (False, 0, part) for part in parts]
