"""Keeps the gadget up: waits for a controller, makes it, looks whether a desktop gets along with it, begins anew where not.

*Frozen* is a gadget that is bound while a desktop has begun to ask who we are and gets no further: its controller's state has
been `attached`, `powered`, `default` or `addressed` for FROZEN_S, where an enumeration takes less than a second. It is then
unbound and bound again, which is to the desktop as if the cable had been pulled. A charger, or a desktop that does not want us,
looks the same: the attempts become rarer, and after FROZEN_AFTER of them it is said.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from appliance.network.direct_mode import INTERFACE
from appliance.network.errors import NetworkError, StepFailed
from appliance.network.usb_interface import UsbInterface
from appliance.wire.messages import UsbLink, UsbState

from .controllers import Controller, Phase, controllers
from .description import Function, Gadget
from .plan import NAME, fits, function_folder, remains, steps_for
from .steps import Bind, Configfs, Step, apply, undo

log = logging.getLogger(__name__)

FROZEN_S = 10.0
FROZEN_AFTER = 3

#: From one attempt to the next: after a failure, and to thaw; doubled each time.
RETRY_S = 5.0
RETRY_LIMIT_S = 300.0

#: How often it looks when nothing calls it, and while something is about to happen.
LOOK_S = 2.0
LOOK_SOON_S = 0.1

#: What udev may take to give the interface its name.
NAMED_WITHIN_S = 10.0


class Action(Enum):
    """What is to be done now."""

    NOTHING = auto()
    BIND = auto()
    REBIND = auto()


@dataclass
class Patience:
    """What was tried, and when it is tried again; times are the clock's."""

    failures: int = 0
    halfway_since: float | None = None
    away_since: float | None = None
    rebinds: int = 0
    not_before: float = 0.0

    def failed(self, now: float) -> None:
        self.failures += 1
        self.not_before = now + min(RETRY_S * 2.0 ** (self.failures - 1), RETRY_LIMIT_S)

    def bound(self) -> None:
        self.failures, self.halfway_since, self.not_before = 0, None, 0.0

    def rebound(self, now: float) -> None:
        self.rebinds += 1
        self.halfway_since = now

    def seen(self, phase: Phase, now: float) -> None:
        """Halfway is nothing bad, unless it lasts; what is over is forgotten."""
        if phase is not Phase.HALFWAY:
            self.halfway_since = None
        elif self.halfway_since is None:
            self.halfway_since = now
        if phase is not Phase.AWAY:
            self.away_since = None
        elif self.away_since is None:
            self.away_since = now
        # To bind again looks like a short absence.
        if phase is Phase.CONFIGURED or (self.away_since is not None and now - self.away_since >= FROZEN_S):
            self.rebinds = 0

    @property
    def frozen_s(self) -> float:
        return min(FROZEN_S * 2.0**self.rebinds, RETRY_LIMIT_S)


def decide(bound: Controller | None, present: list[Controller], patience: Patience, now: float) -> Action:
    """`bound` is the controller that has our gadget."""
    if bound is None:
        return Action.BIND if present and now >= patience.not_before else Action.NOTHING
    if patience.halfway_since is not None and now - patience.halfway_since >= patience.frozen_s:
        return Action.REBIND
    return Action.NOTHING


class Keeper:
    """`describe(max_speed)` makes the gadget for a controller; `interface` is None without direct mode, and `trouble` then says
    why if nobody wanted that. `release_line` returns when nobody has the serial line open: the kernel would wait for them
    without end while it is taken away."""

    def __init__(
        self,
        gadgets: Path,
        udc: Path,
        *,
        describe: Callable[[str], Gadget],
        interface: UsbInterface | None,
        release_line: Callable[[], None],
        clock: Callable[[], float],
        trouble: str = "",
        tree: Configfs | None = None,
    ) -> None:
        self._gadgets, self._udc, self._describe = gadgets, udc, describe
        self._interface, self._release_line, self._clock = interface, release_line, clock
        self._tree = tree or Configfs()
        self._folder = gadgets / NAME
        self._patience = Patience()
        self._steps: list[Step] = []
        self._trouble = ""  # why there is no gadget
        self._link_trouble = trouble
        self._link_up, self._link_since = False, 0.0
        self._phase = Phase.AWAY

    # --- what happens -------------------------------------------------------------------------------------------

    def look(self) -> float:
        """Does what is to be done now; returns in how many seconds to look again at the latest."""
        now = self._clock()
        present = controllers(self._udc)
        bound = self._bound(present)
        phase = bound.phase if bound else Phase.AWAY
        self._patience.seen(phase, now)
        match decide(bound, present, self._patience, now):
            case Action.BIND:
                self._bind(present, now)
            case Action.REBIND:
                assert bound is not None
                log.warning("%s has been %r for too long: binding again", bound.name, bound.state)
                self._rebind(bound, now)
        if phase is not self._phase:
            self._phase = phase
            log.info("usb: %s", phase)
            if phase is Phase.CONFIGURED:
                self._link_up = False  # somebody may have flushed the firewall meanwhile
        return self._look_at_link(now)

    def close(self) -> None:
        """Takes everything away, in reverse. Whoever has the serial line open has been stopped before."""
        found = remains(self._folder, self._tree)
        if found:
            self._release_line()
            if undo(found, self._tree):
                log.info("the gadget is taken down")
        if self._interface is not None:
            try:
                self._interface.unguard()
            except NetworkError as error:
                log.warning("%s", error)

    def _bound(self, present: list[Controller]) -> Controller | None:
        """Which controller has us. Only a gadget that we have made or looked through counts."""
        name = self._tree.read(self._folder / "UDC") if self._steps else ""
        return next((each for each in present if each.name == name and each.gadget in (None, NAME)), None)

    def _hangs(self, controller: Controller) -> bool:
        """Whether the kernel has our gadget down as this controller's and does not run it. So it is when a controller went and
        came back: the kernel begins anew by itself, and our network function, whose interface stood on the old one, fails."""
        return controller.gadget == "" and self._tree.read(self._folder / "UDC") == controller.name

    def _bind(self, present: list[Controller], now: float) -> None:
        """On the first controller that takes it."""
        trouble = ""
        ours = self._tree.read(self._folder / "UDC")
        for controller in sorted(present, key=lambda each: each.name != ours):
            try:
                self._make(controller)
            except StepFailed as error:
                trouble = str(error)
                if error.busy:
                    continue
                break
            self._trouble = ""
            self._patience.bound()
            log.info("the gadget is up on %s", controller.name)
            return
        if trouble != self._trouble:
            log.error("no gadget: %s", trouble)
        self._trouble = trouble
        self._steps = []
        self._patience.failed(now)

    def _make(self, controller: Controller) -> None:
        """What lies there already is completed where it fits, for somebody may have been killed half way; else it goes first."""
        if not self._gadgets.is_dir():
            raise StepFailed("the kernel has no gadgets: the module libcomposite is missing")
        gadget = self._describe(controller.max_speed)
        steps: list[Step] = [
            *steps_for(gadget, self._folder),
            Bind(self._folder / "UDC", controller.name),
        ]
        found = remains(self._folder, self._tree)
        if found and (self._hangs(controller) or not fits(steps, found, self._tree)):
            log.info("a gadget of ours lies there that cannot go on: taking it down")
            self._release_line()
            if not undo(found, self._tree):
                raise StepFailed(f"{self._folder} cannot be taken away")
        apply(steps, self._tree, before_undo=self._release_line)
        self._steps = steps
        self._link_up, self._link_since = False, self._clock()

    def _rebind(self, bound: Controller, now: float) -> None:
        bind = Bind(self._folder / "UDC", bound.name)
        undo([bind], self._tree)
        try:
            bind.do(self._tree)
        except OSError as error:
            self._trouble = f"cannot {bind}: {error.strerror}"
            log.error("%s", self._trouble)
            self._patience.failed(now)
        else:
            self._patience.rebound(now)

    # --- direct mode --------------------------------------------------------------------------------------------

    def _look_at_link(self, now: float) -> float:
        """Brings the interface up once it is there and has its name."""
        if self._interface is None or not self._steps or self._link_up:
            return LOOK_S
        name = self._tree.read(function_folder(self._folder, Function.NETWORK) / "ifname")
        if name != INTERFACE and now - self._link_since < NAMED_WITHIN_S:
            return LOOK_SOON_S
        trouble = ""
        if name != INTERFACE:
            trouble = f"its interface is called {name or 'nothing'}, expected {INTERFACE}: another one has that name"
        else:
            try:
                self._interface.up()
            except NetworkError as error:
                trouble = str(error)
        if trouble and trouble != self._link_trouble:
            log.error("no direct mode: %s", trouble)
        self._link_trouble, self._link_up = trouble, not trouble
        if self._link_up:
            try:
                self._interface.announce()
            except NetworkError as error:
                log.warning("the link is not announced: %s", error)
        return LOOK_S

    # --- what is shown ------------------------------------------------------------------------------------------

    def status(self) -> UsbLink:
        """As it was at the last look."""
        bound = self._bound(controllers(self._udc))
        state, detail = self._in_words(bound)
        network = self._interface is not None and bool(self._steps)
        return UsbLink(
            state=state,
            detail=detail,
            controller=bound.name if bound else "",
            speed=bound.speed if bound and state is UsbState.CONNECTED else "",
            functions=[str(each) for each in self._describe("").functions] if self._steps else [],
            interface=INTERFACE if network else "",
            address=str(self._interface.mode.address)
            if network and self._interface and self._link_up
            else "",
            trouble=self._link_trouble,
        )

    def _in_words(self, bound: Controller | None) -> tuple[UsbState, str]:
        if bound is None:
            if self._trouble:
                return UsbState.FAILED, self._trouble
            return UsbState.WAITING, "this machine has no USB device controller (yet)"
        if self._patience.rebinds >= FROZEN_AFTER:
            tried = self._patience.rebinds
            return (
                UsbState.FROZEN,
                f"what is plugged in stops at {bound.state!r}; tried {tried} times to begin anew",
            )
        if bound.phase is Phase.CONFIGURED:
            return UsbState.CONNECTED, f"a desktop is connected ({bound.speed or 'speed unknown'})"
        if bound.phase is Phase.HALFWAY:
            return UsbState.UNPLUGGED, f"something is plugged in and has not accepted us yet ({bound.state})"
        return UsbState.UNPLUGGED, f"nothing is plugged in ({bound.state or 'state unknown'})"
