"""Repairs: what the owner should know and may have to do, as Home Assistant's resolution centre keeps it.

Whoever notices a trouble opens a repair and closes it when it is over. Nothing is stored: a supervisor that starts finds again
what is still wrong.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from appliance.wire.messages import Repair, Severity

from .errors import NoSuchRepair, NotFixable

Fix = Callable[[], Awaitable[str]]


class Kind(StrEnum):
    """What can be wrong."""

    CONFIGURATION_REFUSED = "configuration_refused"
    CONFIGURATION_WARNING = "configuration_warning"
    MODE_NOT_IN_EFFECT = "mode_not_in_effect"
    MODEL_UNUSABLE = "model_unusable"
    ADAPTER_UNUSABLE = "adapter_unusable"
    WORKER_CRASH_LOOP = "worker_crash_loop"
    WORKER_MEMORY = "worker_memory"


@dataclass(frozen=True)
class Sort:
    """What is the same for all repairs of a kind; `fix` is what the automatic fix does, empty when there is none."""

    severity: Severity
    advice: str
    fix: str = ""


SORTS: dict[Kind, Sort] = {
    Kind.CONFIGURATION_REFUSED: Sort(
        Severity.ERROR,
        "Correct the file ('coral-reef config check' shows the lines), then 'coral-reef reload'. "
        "Until then the appliance runs with the configuration it had.",
        "reads the configuration again",
    ),
    Kind.CONFIGURATION_WARNING: Sort(
        Severity.WARNING, "Correct the line, then 'coral-reef reload'.", "reads the configuration again"
    ),
    Kind.MODE_NOT_IN_EFFECT: Sort(
        Severity.WARNING, "Set 'mode: local' in network.yaml, or wait for a release that has the mode."
    ),
    Kind.MODEL_UNUSABLE: Sort(
        Severity.CRITICAL,
        "Add the model again ('coral-reef model add FILE --name NAME --replace'), or load another one "
        "('coral-reef model load NAME'; 'coral-reef model list' shows them).",
        "starts the worker again",
    ),
    Kind.ADAPTER_UNUSABLE: Sort(
        Severity.ERROR,
        "Add the adapter again ('coral-reef model add FILE --for MODEL --name NAME --replace') or remove it "
        "('coral-reef model remove NAME'), then 'coral-reef model load MODEL'. The model itself is not affected.",
    ),
    Kind.WORKER_CRASH_LOOP: Sort(
        Severity.CRITICAL,
        "Look at the log for the reason. A model or a setting that was changed last is the likeliest one.",
        "starts the worker again at once",
    ),
    Kind.WORKER_MEMORY: Sort(
        Severity.ERROR,
        "Lower text.slots, text.context_tokens or text.cache_mib in appliance.toml, or load a smaller model; if the machine has "
        "more memory, raise text.memory_limit_mib.",
    ),
}

_ORDER = (Severity.CRITICAL, Severity.ERROR, Severity.WARNING)


class Repairs:
    """All that is wrong now. `changed(repair, gone)` is called whenever one appears, changes or goes."""

    def __init__(
        self, changed: Callable[[Repair, bool], None], clock: Callable[[], float] = time.time
    ) -> None:
        self._changed, self._clock = changed, clock
        self._open: dict[str, tuple[Repair, Fix | None]] = {}

    def open(self, kind: Kind, subject: str, what: str, fix: Fix | None = None) -> None:
        """Something is wrong with `subject`. Said again in the same words it is nothing new; in others, the words change."""
        sort = SORTS[kind]
        key = _id(kind, subject)
        before = self._open.get(key)
        repair = Repair(
            id=key,
            kind=kind,
            subject=subject,
            severity=sort.severity,
            since=before[0].since if before else self._clock(),
            what=what,
            advice=sort.advice,
            fix=sort.fix if fix else "",
        )
        self._open[key] = repair, fix
        if before is None or before[0] != repair:
            self._changed(repair, False)

    def close(self, kind: Kind, subject: str) -> None:
        """It is over; nothing happens when there was nothing."""
        if found := self._open.pop(_id(kind, subject), None):
            self._changed(found[0], True)

    def when(self, kind: Kind, subject: str, what: str, fix: Fix | None = None) -> None:
        """Opens it while there is something to say, closes it when `what` is empty."""
        if what:
            self.open(kind, subject, what, fix)
        else:
            self.close(kind, subject)

    def only(self, kind: Kind, troubles: Iterable[tuple[str, str]], fix: Fix | None = None) -> None:
        """Exactly these (subject, what) are wrong of this kind: opens them and closes all others."""
        wanted = dict(troubles)
        for repair in self.all():
            if repair.kind == kind and repair.subject not in wanted:
                self.close(kind, repair.subject)
        for subject, what in wanted.items():
            self.open(kind, subject, what, fix)

    def all(self) -> list[Repair]:
        """Worst first, then oldest first."""
        repairs = [repair for repair, _ in self._open.values()]
        return sorted(repairs, key=lambda repair: (_ORDER.index(repair.severity), repair.since))

    async def fix(self, repair_id: str) -> str:
        """Does what the repair's `fix` says and returns a sentence. NoSuchRepair, NotFixable, or what the fix raises."""
        if repair_id not in self._open:
            raise NoSuchRepair(f"nothing is wrong under the name {repair_id!r} (any more)")
        repair, fix = self._open[repair_id]
        if fix is None:
            raise NotFixable(f"{repair_id}: nothing that the appliance can do itself. {repair.advice}")
        return await fix()


def _id(kind: Kind, subject: str) -> str:
    return f"{kind}:{subject}"
