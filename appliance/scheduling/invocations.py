"""Which invocation of a model runs next, and on which device of a worker: its TPUs, or its threads for the CPU.

Pure bookkeeping without clock or thread: whoever runs the devices says what has happened and when, and is told what to begin. A
piece of work is a few invocations of one model for one request. It is given to a device that is idle, else it waits:

- by priority: HIGH, NORMAL, LOW; one that was passed over PATIENCE times goes first for once. BULK runs when nothing else
waits.
- within a priority by account, in turns: who has sent a thousand waits for none that sent one less than anybody else does;
- of a few heads in turn, one whose model the device holds already comes first, but none is passed over more than PASSES times.

Among idle devices the one comes first that holds the model, then one whose role the model is for, then a cool one, then the one
that was idle for longest; the reserve last. A device may use a share of its time: after work it rests for the rest.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.wire.messages import Priority

#: What an Edge TPU keeps of models on its chip, in bytes (coral.ai, "Edge TPU compiler": parameter data caching).
TPU_MEMORY_BYTES = 8 << 20

#: So many times in a row a priority with work may be passed over by higher ones.
PATIENCE = {Priority.NORMAL: 8, Priority.LOW: 16}

#: Heads of accounts that are looked at for a model that the device holds, and how often one is passed over for that.
LOOK = 8
PASSES = 4

#: Invocations of one piece: a request of higher priority waits for as many at most, some 50 us each with their texts.
PIECE_LIMIT = 32

#: A piece that made so many devices fail is the fault itself.
TRIES_LIMIT = 3

_CLASSES = (Priority.HIGH, Priority.NORMAL, Priority.LOW)


@dataclass(slots=True, eq=False)
class Work:
    """Invocations that one device runs in a row. `payload` belongs to whoever submits it; None: the device is to load the
    model."""

    model: str
    account: str = ""
    priority: Priority = Priority.NORMAL
    payload: Any = None
    tries: int = 0
    passed: int = 0


@dataclass(slots=True, eq=False)
class Device:
    """A TPU, or a thread for the CPU. `prefers` are the models of its role; `holds` those in its memory, the newest last."""

    name: str
    share: float
    prefers: frozenset[str]
    reserve: bool
    memory_bytes: int
    loads: deque[str]
    holds: OrderedDict[str, None] = field(default_factory=OrderedDict)
    work: Work | None = None
    began: float = 0.0
    rest_until: float = 0.0
    turn: int = 0

    def rank(self, model: str) -> tuple[bool, int, float, int, str]:
        """Its place among idle devices for that model, the best first."""
        role = 0 if model in self.prefers else 2 if self.reserve else 1
        return model not in self.holds, role, -self.share, self.turn, self.name


class _Line:
    """What waits in one priority, account by account in turns."""

    def __init__(self) -> None:
        self._accounts: OrderedDict[str, deque[Work]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._accounts)

    def __iter__(self) -> Iterator[Work]:
        return (work for works in self._accounts.values() for work in works)

    def add(self, work: Work, *, first: bool) -> None:
        works = self._accounts.setdefault(work.account, deque())
        if first:
            works.appendleft(work)
            self._accounts.move_to_end(work.account, last=False)
        else:
            works.append(work)

    def take(self, device: Device) -> Work:
        skipped: list[Work] = []
        for number, works in enumerate(self._accounts.values()):
            head = works[0]
            if number == LOOK or (head.passed >= PASSES and head.model not in device.holds):
                break
            if head.model in device.holds:
                for each in skipped:
                    each.passed += 1
                return self._pop(head.account)
            skipped.append(head)
        return self._pop(next(iter(self._accounts)))

    def _pop(self, account: str) -> Work:
        works = self._accounts[account]
        work = works.popleft()
        if works:
            self._accounts.move_to_end(account)
        else:
            del self._accounts[account]
        return work

    def withdraw(self, unwanted: Callable[[Work], bool]) -> list[Work]:
        gone: list[Work] = []
        for account, works in list(self._accounts.items()):
            mine = [work for work in works if unwanted(work)]
            if len(mine) == len(works):
                del self._accounts[account]
            elif mine:
                self._accounts[account] = deque(work for work in works if work not in mine)
            gone += mine
        return gone


class Invocations:
    """The devices of one worker, and all work that runs and waits. `sizes` are the models' bytes."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._sizes = sizes
        self._devices: dict[str, Device] = {}
        self._lines = {priority: _Line() for priority in Priority}
        self._passed_over = dict.fromkeys(PATIENCE, 0)
        self._turns = 0

    # --- devices ----------------------------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        now: float,
        *,
        share: float = 1.0,
        prefers: Collection[str] = (),
        reserve: bool = False,
        memory_bytes: int = TPU_MEMORY_BYTES,
    ) -> Work | None:
        """A device is there; returns what it is to begin. It loads, when nothing else is to be done, the models of its role and
        then the others, as far as they fit together."""
        loads = deque(self._fitting(prefers, memory_bytes))
        device = Device(name, share, frozenset(prefers), reserve, memory_bytes, loads)
        self._devices[name] = device
        return self._next(device, now)

    def remove(self, name: str) -> Work | None:
        """A device is gone; returns the work that it had, to be submitted again."""
        device = self._devices.pop(name, None)
        if device is None or device.work is None or device.work.payload is None:
            return None
        device.work.tries += 1
        return device.work

    def set_share(self, name: str, share: float) -> None:
        """From its next work on, a device may use this share of its time; with 0 it gets none."""
        self._devices[name].share = share

    def set_role(self, name: str, *, prefers: Collection[str], reserve: bool) -> None:
        """A device has another role: the reserve takes over, or steps back. It loads what it lacks of the models for that."""
        device = self._devices[name]
        device.prefers, device.reserve = frozenset(prefers), reserve
        loads = self._fitting(prefers, device.memory_bytes)
        device.loads = deque(model for model in loads if model not in device.holds)

    @property
    def devices(self) -> Mapping[str, Device]:
        return self._devices

    # --- work -------------------------------------------------------------------------------------------------------

    def submit(self, work: Work, now: float) -> str | None:
        """The device that begins it now; None: it waits. What was tried before waits in front: it has had its turn."""
        device = self._idle(work, now)
        if device is None:
            self._lines[work.priority].add(work, first=work.tries > 0)
            return None
        self._begin(device, work, now)
        return device.name

    def done(self, name: str, now: float) -> Work | None:
        """A device has done its work, for better or worse; returns what it begins now. See `rest_until` when that is
        nothing."""
        device = self._devices[name]
        if 0 < device.share < 1:
            device.rest_until = now + (now - device.began) * (1 / device.share - 1)
        device.work = None
        return self._next(device, now)

    def look(self, name: str, now: float) -> Work | None:
        """What an idle device begins now: it has rested, or may do more than before."""
        device = self._devices[name]
        return None if device.work else self._next(device, now)

    def withdraw(self, unwanted: Callable[[Work], bool]) -> list[Work]:
        """Takes out what waits and nobody wants any more; what runs already runs on."""
        return [work for line in self._lines.values() for work in line.withdraw(unwanted)]

    def drain(self) -> list[Work]:
        """All that waits, taken out."""
        works = [work for line in self._lines.values() for work in line]
        self._lines = {priority: _Line() for priority in Priority}
        return works

    @property
    def waiting(self) -> int:
        return sum(len(list(line)) for line in self._lines.values())

    # --- inside -----------------------------------------------------------------------------------------------------

    def _fitting(self, prefers: Collection[str], memory_bytes: int) -> Iterator[str]:
        """The models that fit together, those of a role first."""
        for model in sorted(self._sizes, key=lambda model: (model not in prefers, model)):
            if self._sizes[model] <= memory_bytes:
                memory_bytes -= self._sizes[model]
                yield model

    def _idle(self, work: Work, now: float) -> Device | None:
        able = (
            device
            for device in self._devices.values()
            if device.work is None and device.share > 0 and device.rest_until <= now
        )
        return min(able, key=lambda device: device.rank(work.model), default=None)

    def _next(self, device: Device, now: float) -> Work | None:
        if device.share <= 0 or device.rest_until > now:
            return None
        line = self._line()
        if line is not None:
            work = line.take(device)
        elif device.loads:
            work = Work(device.loads.popleft(), priority=Priority.BULK)
        elif self._lines[Priority.BULK]:
            work = self._lines[Priority.BULK].take(device)
        else:
            return None
        self._begin(device, work, now)
        return work

    def _line(self) -> _Line | None:
        """The line whose turn it is."""
        waiting = [priority for priority in _CLASSES if self._lines[priority]]
        if not waiting:
            return None
        late = [each for each in waiting[1:] if self._passed_over[each] >= PATIENCE[each]]
        chosen = late[0] if late else waiting[0]
        for priority in PATIENCE:
            passed = priority in waiting and priority > chosen
            self._passed_over[priority] = self._passed_over[priority] + 1 if passed else 0
        return self._lines[chosen]

    def _begin(self, device: Device, work: Work, now: float) -> None:
        self._turns += 1
        device.work, device.began, device.turn = work, now, self._turns
        device.holds[work.model] = None
        device.holds.move_to_end(work.model)
        used = sum(self._sizes.get(model, 0) for model in device.holds)
        while used > device.memory_bytes and len(device.holds) > 1:
            oldest, _ = device.holds.popitem(last=False)
            used -= self._sizes.get(oldest, 0)


def pieces(invocations: int, devices: int) -> Sequence[range]:
    """How a request is divided: over all devices, in pieces of at most PIECE_LIMIT."""
    size = min(PIECE_LIMIT, -(-invocations // max(1, devices)))
    return [range(start, min(start + size, invocations)) for start in range(0, invocations, size)]
