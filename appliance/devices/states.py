"""The life of a TPU: which facts make which state, and what may follow on what."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

from appliance.wire.messages import TpuRole, TpuState

from .sysfs import Lack, Sighting
from .temperature import Heat
from .trays import Place

APPEARING, BOOT_LOADER, READY, LEASED, HOT, FAULTY, QUARANTINED, GONE = TpuState

#: state -> the states that may follow it
NEXT: dict[TpuState, frozenset[TpuState]] = {
    APPEARING: frozenset({BOOT_LOADER, READY, HOT, FAULTY, QUARANTINED, GONE}),
    BOOT_LOADER: frozenset({APPEARING, LEASED, QUARANTINED, GONE}),
    READY: frozenset({APPEARING, LEASED, HOT, FAULTY, QUARANTINED, GONE}),
    LEASED: frozenset({APPEARING, BOOT_LOADER, READY, HOT, FAULTY, QUARANTINED, GONE}),
    HOT: frozenset({APPEARING, READY, LEASED, FAULTY, QUARANTINED, GONE}),
    FAULTY: frozenset({APPEARING, BOOT_LOADER, READY, HOT, QUARANTINED, GONE}),
    QUARANTINED: frozenset({APPEARING, GONE}),
    GONE: frozenset({APPEARING, BOOT_LOADER, READY, QUARANTINED}),
}

#: What a worker may open, or has open.
USABLE = frozenset({BOOT_LOADER, READY, LEASED, HOT})

#: A TPU that lacks its node, its permissions or its driver for longer than udev takes lacks it for good.
PATIENCE_S = 10.0


class Fault(StrEnum):
    """What is wrong with a TPU that is there and lacks nothing."""

    FAILED = "failed"  # whoever used it says so; it is tried again
    OFF_THE_BUS = "off_the_bus"


@dataclass
class Device:
    """All that is known of one TPU; times in seconds on the table's clock.

    `seen` is what it was last seen as, `there` whether it still is. `home` is the role of its slot, `role` what it does now.
    Until `own_until`, its going and coming is our own doing: an open resets the port. Events of other nodes than
    `since_node` are older, until one names it; those in `left_nodes` are known to have gone. `stuck`: somebody tried to open it,
    and it is in its boot loader all the same.
    """

    id: str
    place: Place
    seen: Sighting
    home: TpuRole
    role: TpuRole
    state: TpuState = APPEARING
    since: float = 0.0
    there: bool = True
    stands_in: bool = False
    lacking_since: float = 0.0
    worker: str = ""
    own_until: float = 0.0
    own_removals: int = 0
    since_node: str = ""
    left_nodes: deque[str] = field(default_factory=lambda: deque(maxlen=8))
    resetting: bool = False
    heat: Heat = Heat.NORMAL
    temperature_c: float | None = None
    fault: Fault | None = None
    fault_detail: str = ""
    stuck: bool = False
    retry_at: float = 0.0
    quarantine: str = ""
    failures: deque[float] = field(default_factory=deque)
    removals: deque[float] = field(default_factory=deque)

    @property
    def lack(self) -> Lack | None:
        """What it lacks. Who has it open proves that nothing is missing."""
        return None if self.worker else self.seen.lack

    def state_at(self, now: float) -> TpuState:
        """The state that the facts make."""
        if self.quarantine:
            return QUARANTINED
        if not self.there:
            if now >= self.own_until:
                return GONE
            return LEASED if self.worker else APPEARING
        if self.fault is not None:
            return FAULTY
        if self.resetting:
            return APPEARING
        if self.lack is not None:
            return FAULTY if now >= self.lacking_since + PATIENCE_S else APPEARING
        if self.heat is not Heat.NORMAL:
            return HOT
        if self.worker:
            return LEASED
        return BOOT_LOADER if self.seen.boot_loader else READY

    def deadlines(self) -> list[float]:
        """When time alone may change something."""
        found = []
        if self.own_until:
            found.append(self.own_until)
        if self.there and self.lack is not None and self.state is APPEARING and not self.resetting:
            found.append(self.lacking_since + PATIENCE_S)
        if self.fault is Fault.FAILED:
            found.append(self.retry_at)
        return found

    def detail(self) -> str:
        """What there is to say about its state, for people."""
        if self.quarantine:
            return self.quarantine if self.there else f"{self.quarantine}; not there now"
        match self.state:
            case TpuState.FAULTY if self.fault is not None:
                return self.fault_detail
            case TpuState.APPEARING if self.resetting:
                return "being reset"
            case TpuState.APPEARING | TpuState.FAULTY:
                return self.seen.detail
            case TpuState.LEASED if not self.there:
                return f"being opened by {self.worker}"
            case TpuState.HOT if self.heat is Heat.SHUT_DOWN:
                return "gets no work until it is cooler"
            case TpuState.HOT:
                return "gets half of its work"
        return ""
