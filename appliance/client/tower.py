"""The tower as a drawing: a row a tray, a place a slot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from rich.text import Text

from appliance.wire.messages import Hotplug, Status, Tpu, TpuRole, TpuState, Tray


class Look(NamedTuple):
    """How a state is drawn: a sign that tells it without colours, and what it means."""

    sign: str
    style: str
    words: str


LOOKS: dict[TpuState, Look] = {
    TpuState.READY: Look("●", "green", "ready"),
    TpuState.BOOT_LOADER: Look("○", "green", "ready, not opened yet"),
    TpuState.LEASED: Look("◆", "bold cyan", "at work"),
    TpuState.HOT: Look("▲", "bold yellow", "hot"),
    TpuState.APPEARING: Look("…", "dim", "appearing"),
    TpuState.FAULTY: Look("✗", "bold red", "faulty"),
    TpuState.QUARANTINED: Look("■", "red", "in quarantine"),
    TpuState.GONE: Look("-", "dim", "gone"),
}
EMPTY = Look("·", "dim", "empty")

ROLES: dict[TpuRole, str] = {
    TpuRole.LANGUAGE: "blue",
    TpuRole.PERCEPTION: "magenta",
    TpuRole.MEMORY: "yellow",
    TpuRole.RESERVE: "bright_black",
}

#: Slots in a row; a tray of more has several.
ROW = 16


def tower_parts(status: Status) -> Iterator[str | Text]:
    """All trays, the highest on top, with a legend of what is to be seen."""
    if status.trays:
        names = max(len(tray.name) for tray in status.trays)
        columns = min(ROW, max(tray.slots for tray in status.trays))
        edge = " " * (names + 1)
        yield Text(f"{edge}╭{'─' * (3 * columns + 2)}╮", "dim")
        for number, tray in enumerate(reversed(status.trays)):
            if number:
                yield Text(f"{edge}├{'─' * (3 * columns + 2)}┤", "dim")
            yield from _tray(tray, status.tpus, names, columns)
        yield Text(f"{edge}╰{'─' * (3 * columns + 2)}╯", "dim")
        yield _legend(status)
    if status.hotplug is Hotplug.POLLED:
        yield "No udev runs here: what is plugged in or out is noticed within some seconds."


def _tray(tray: Tray, tpus: list[Tpu], names: int, columns: int) -> list[Text]:
    """The rows of a tray: roles above, states below."""
    here = {tpu.slot: tpu for tpu in tpus if tpu.tray == tray.name}
    rows: list[Text] = []
    for first in range(1, max(tray.slots, 1) + 1, ROW):
        roles, states = Text(" "), Text(" ")
        for slot in range(first, first + columns):
            tpu = here.get(slot)
            look = LOOKS[tpu.state] if tpu else EMPTY if slot <= tray.slots else Look(" ", "", "")
            role = tpu.role[0].upper() + ("*" if tpu.stands_in else " ") if tpu else "  "
            roles.append(f"{role} ", ROLES[tpu.role] if tpu else "")
            states.append(f"{look.sign}  ", look.style)
        for row, content in enumerate((roles, states)):
            label = tray.name if first == 1 and row == 0 else ""
            line = Text.assemble((f"{label:>{names}} ", "bold"), ("│", "dim"), content, (" │", "dim"))
            if first == 1:
                line.append(
                    f" {_facts(tray, list(here.values()))[row]}", "red" if row and tray.problem else ""
                )
            rows.append(line)
    return rows


def _facts(tray: Tray, tpus: list[Tpu]) -> tuple[str, str]:
    """What stands beside a tray: counts and heat, then whose it is or what is wrong."""
    there = sum(tpu.state is not TpuState.GONE for tpu in tpus)
    warmest = max((tpu.temperature_c for tpu in tpus if tpu.temperature_c is not None), default=None)
    count = f"{there} of {tray.slots}" + (f", at most {warmest:.0f} °C" if warmest is not None else "")
    names = ", ".join(filter(None, (tray.identity, f"persona {tray.persona}" if tray.persona else "")))
    return count, tray.problem or names


def _legend(status: Status) -> Text:
    """Counts of what is to be seen, with the signs."""
    legend = Text()
    counts = Counter(tpu.state for tpu in status.tpus)
    for state, look in LOOKS.items():
        if counts[state]:
            legend.append(f"{look.sign} ", look.style).append(f"{counts[state]} {look.words}   ")
    for role, style in ROLES.items():
        if all(tpu.role is not role for tpu in status.tpus):
            continue
        legend.append(role[0].upper(), style).append(f" {role}   ")
    if any(tpu.stands_in for tpu in status.tpus):
        legend.append("* stands in for one that does not work")
    return legend
