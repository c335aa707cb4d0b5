"""A tower of 128 TPUs under load whose parts fail at random, in simulated time: `python -m tests.scheduling.simulation
[SECONDS] [SEED]`.

What decides is the real thing (`group`, `InvokeLeases`, `Invocations`); what is played are the TPUs, their workers' lives,
and the gateways, which ask again when a worker was lost. Times: an invocation takes about 2 ms on a TPU and 20 ms on the CPU,
a model that a TPU does not hold 5 ms more; a TPU that failed is back after some seconds, and is opened in 3.2 s; a stuck one
costs its worker after 2 s, which is back after 0.3 s.
"""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from appliance.scheduling.errors import NoWorker
from appliance.scheduling.groups import group
from appliance.scheduling.invocations import Invocations, Work, pieces
from appliance.scheduling.invoke_leases import InvokeLeases
from appliance.wire.messages import Priority

TRAYS, SLOTS = 8, 16
SIZES = {"embedding": 3 << 20, "emotion": 1 << 20, "large": 6 << 20}
ON_TPU_S, ON_CPU_S, SWAP_S = 0.002, 0.020, 0.005
OPEN_S, RESTART_S, STUCK_S, RETRY_S, HOT_S = 3.2, 0.3, 2.0, 0.05, 10.0
CPU_THREADS = 2

#: Seconds between two failures of one TPU, by what happens: it fails and is away, it sticks, it is hot for a while.
BETWEEN_S = {"fails": 60.0, "sticks": 600.0, "hot": 100.0}

#: Accounts and their share of the requests: one sends as much as all others together.
GREEDY, MODEST = "greedy", [f"account-{number}" for number in range(19)]


@dataclass
class Request:
    """One that a gateway wants answered. `attempt` counts the workers that were asked."""

    number: int
    account: str
    kind: str
    size: int
    priority: Priority
    began: float
    attempt: int = 0
    left: int = 0
    answers: int = 0
    ended: float = 0.0
    avoid: str = ""


@dataclass
class Worker:
    """A worker's life. `number` tells its lives apart."""

    name: str
    devices: Invocations
    life: int = 0
    alive: bool = True
    requests: dict[int, Request] = field(default_factory=dict)


@dataclass
class Report:
    """What came of it; times in seconds. `busy` is by TPU, `there` for how long it could work."""

    requests: list[Request]
    busy: dict[str, float]
    there: dict[str, float]
    failures: Counter[str]
    replays: Counter[str]
    seconds: float
    on_cpu: int

    def utilisation(self) -> dict[str, float]:
        return {tpu: self.busy[tpu] / there for tpu, there in self.there.items() if there > 0}

    def fairness_of_tpus(self) -> float:
        """Jain's index of their utilisations: 1 when all are alike (Jain, Chiu, Hawe 1984)."""
        return jain(list(self.utilisation().values()))

    def latencies(self, choose: Callable[[Request], bool]) -> list[float]:
        return sorted(each.ended - each.began for each in self.requests if choose(each))


def jain(values: Sequence[float]) -> float:
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


class Tower:
    """The simulation."""

    def __init__(self, *, seconds: float, load: float, seed: int) -> None:
        """`load` is the share of all TPUs' time that is asked for."""
        self.draw = random.Random(seed)
        self.seconds, self.load = seconds, load
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self.leases = InvokeLeases(limit=1_000_000)
        self.leases.expect({kind: kind for kind in SIZES})
        trays = {f"pci-{n:03}": f"tray-{n // SLOTS + 1}" for n in range(TRAYS * SLOTS)}
        self.worker_of = group(trays, {})
        self.workers = {
            name: Worker(name, Invocations(SIZES)) for name in sorted(set(self.worker_of.values()))
        }
        self.workers["cpu-1"] = Worker("cpu-1", Invocations(SIZES))
        self.busy = dict.fromkeys(trays, 0.0)
        self.there = dict.fromkeys(trays, 0.0)
        self.since: dict[str, float] = {}
        self.stuck: set[str] = set()
        self.doing: dict[str, tuple[float, Work]] = {}
        self.requests: list[Request] = []
        self.failures: Counter[str] = Counter()
        self.replays: Counter[str] = Counter()
        self.on_cpu = 0
        self.open = 0  # requests that are not answered yet

    def run(self) -> Report:
        for number in range(CPU_THREADS):
            self._join("cpu-1", f"cpu-{number}")
        for tpu, worker in self.worker_of.items():
            self._join(worker, tpu)
            for what, between_s in BETWEEN_S.items():
                self._after(self.draw.expovariate(1 / between_s), partial(self._trouble, tpu, what))
        self._arrive()
        while self.now < self.seconds or self.open:
            self.now, _, happen = heapq.heappop(self._events)
            happen()
        for tpu in list(self.since):
            self._leaves(tpu)
        return Report(
            self.requests, self.busy, self.there, self.failures, self.replays, self.now, self.on_cpu
        )

    # --- requests ---------------------------------------------------------------------------------------------------

    def _arrive(self) -> None:
        if self.now >= self.seconds:
            return
        account = GREEDY if self.draw.random() < 0.5 else self.draw.choice(MODEST)
        size = 1 if self.draw.random() < 0.6 else 32
        kind = self.draw.choices(sorted(SIZES), (70, 25, 5))[0]
        priority = Priority.HIGH if kind == "emotion" else Priority.NORMAL if size == 1 else Priority.LOW
        request = Request(len(self.requests), account, kind, size, priority, self.now)
        self.requests.append(request)
        self.open += 1
        self._ask(request)
        mean_s = (0.6 + 0.4 * 32) * ON_TPU_S / (self.load * TRAYS * SLOTS)
        self._after(self.draw.expovariate(1 / mean_s), self._arrive)

    def _ask(self, request: Request) -> None:
        """What a gateway does: a lease, then the worker; a moment later once more when nobody is there."""
        request.attempt += 1
        lease = f"{request.number}-{request.attempt}"
        try:
            name, _ = self.leases.request(
                "gateway", lease, kind=request.kind, invocations=request.size, avoid=request.avoid
            )
        except NoWorker:
            self._after(RETRY_S, lambda: self._ask(request))
            return
        worker = self.workers[name]
        if not worker.alive or not worker.devices.devices:
            self._again(request, name)
            return
        request.left = request.size
        request.avoid = name
        worker.requests[request.number] = request
        for part in pieces(request.size, len(worker.devices.devices)):
            work = Work(
                request.kind, request.account, request.priority, (request, request.attempt, len(part))
            )
            device = worker.devices.submit(work, self.now)
            if device is not None:
                self._begin(worker, device, work)

    def _again(self, request: Request, worker: str) -> None:
        self.leases.settle("gateway", f"{request.number}-{request.attempt}")
        self.replays["requests"] += 1
        request.avoid = worker
        self._after(RETRY_S, lambda: self._ask(request))

    def _settle(self, worker: Worker, work: Work, device: str) -> None:
        request, attempt, count = work.payload
        if attempt != request.attempt or request.number not in worker.requests:
            return
        request.left -= count
        self.on_cpu += count * device.startswith("cpu")
        if not request.left:
            request.answers += 1
            self.open -= 1
            request.ended = self.now
            del worker.requests[request.number]
            self.leases.settle("gateway", f"{request.number}-{request.attempt}")

    # --- devices ----------------------------------------------------------------------------------------------------

    def _join(self, name: str, device: str) -> None:
        worker = self.workers[name]
        if not worker.alive or device in worker.devices.devices:
            return
        self.since[device] = self.now
        prefers = ["embedding", "emotion"] if device.startswith("cpu") else [self.draw.choice(sorted(SIZES))]
        work = worker.devices.add(device, self.now, prefers=prefers)
        self._offer(worker)
        if work is not None:
            self._begin(worker, device, work)

    def _leaves(self, device: str) -> None:
        since = self.since.pop(device, None)
        if since is not None and device in self.there:
            self.there[device] += self.now - since

    def _offer(self, worker: Worker) -> None:
        count = len(worker.devices.devices)
        self.leases.worker(worker.name, models=SIZES, capacity=count, tpu=worker.name != "cpu-1")

    def _begin(self, worker: Worker, device: str, work: Work) -> None:
        self.doing[device] = self.now, work
        if device in self.stuck:
            life = worker.life
            self._after(STUCK_S, lambda: self._kill(worker, life, device))
            return
        count = work.payload[2] if work.payload else 1
        each_s = ON_CPU_S if device.startswith("cpu") else ON_TPU_S
        took = count * each_s * self.draw.uniform(0.8, 1.2) + SWAP_S * (work.payload is None)
        life = worker.life
        self._after(took, lambda: self._done(worker, life, device, work))

    def _done(self, worker: Worker, life: int, device: str, work: Work) -> None:
        known = worker.devices.devices.get(device)
        if worker.life != life or known is None or known.work is not work:
            return  # it failed meanwhile; its work runs elsewhere
        began, _ = self.doing.pop(device)
        if device in self.busy:
            self.busy[device] += self.now - began
        if work.payload:
            self._settle(worker, work, device)
        self._next(worker, device, worker.devices.done(device, self.now))

    def _next(self, worker: Worker, device: str, work: Work | None) -> None:
        if work is not None:
            self._begin(worker, device, work)
            return
        rest_until = worker.devices.devices[device].rest_until
        if rest_until > self.now:
            life = worker.life
            self._after(rest_until - self.now, lambda: self._rested(worker, life, device))

    def _rested(self, worker: Worker, life: int, device: str) -> None:
        if worker.life == life and device in worker.devices.devices and device not in self.doing:
            self._next(worker, device, worker.devices.look(device, self.now))

    # --- trouble ----------------------------------------------------------------------------------------------------

    def _trouble(self, tpu: str, what: str) -> None:
        if self.now >= self.seconds:
            return
        self._after(self.draw.expovariate(1 / BETWEEN_S[what]), lambda: self._trouble(tpu, what))
        worker = self.workers[self.worker_of[tpu]]
        if tpu not in worker.devices.devices:
            return
        self.failures[what] += 1
        if what == "hot":
            worker.devices.set_share(tpu, 0.5)
            self._after(HOT_S, partial(self._cooled, worker, tpu))
        elif what == "sticks":
            self.stuck.add(tpu)
        else:
            self._fail(worker, tpu)

    def _cooled(self, worker: Worker, tpu: str) -> None:
        if tpu in worker.devices.devices:
            worker.devices.set_share(tpu, 1.0)

    def _fail(self, worker: Worker, tpu: str) -> None:
        """An invoke fails: what it had is begun elsewhere in the worker, or the request elsewhere in the tower."""
        self.doing.pop(tpu, None)
        self._leaves(tpu)
        work = worker.devices.remove(tpu)
        self._offer(worker)
        if work is not None:
            self.replays["pieces"] += 1
            device = worker.devices.submit(work, self.now)
            if device is not None:
                self._begin(worker, device, work)
        if not worker.devices.devices:
            worker.devices.drain()
            self._lose_requests(worker)
        self._after(self.draw.uniform(1, 10) + OPEN_S, lambda: self._join(worker.name, tpu))

    def _kill(self, worker: Worker, life: int, tpu: str) -> None:
        """The supervisor ends a worker for an invoke that does not return."""
        if worker.life != life or tpu not in self.stuck:
            return
        self.failures["killed"] += 1
        self.stuck.discard(tpu)
        worker.life += 1
        worker.alive = False
        devices = list(worker.devices.devices)
        for device in devices:
            self.doing.pop(device, None)
            self._leaves(device)
        worker.devices = Invocations(SIZES)
        self.leases.worker_gone(worker.name)
        self._lose_requests(worker)

        def back() -> None:
            worker.alive = True
            self._offer(worker)
            for device in devices:
                away_s = self.draw.uniform(5, 10) if device == tpu else 0.0
                self._after(OPEN_S + away_s, partial(self._join, worker.name, device))

        self._after(RESTART_S, back)

    def _lose_requests(self, worker: Worker) -> None:
        lost, worker.requests = worker.requests, {}
        for request in lost.values():
            self._again(request, worker.name)

    def _after(self, delay_s: float, happen: Callable[[], object]) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self._order), happen))


# --- what is printed ------------------------------------------------------------------------------------------------

BLOCKS = " ▁▂▃▄▅▆▇█"


def bar(value: float) -> str:
    return BLOCKS[max(0, min(8, round(value * 8)))]


def quantile(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def _of_priority(priority: Priority, request: Request) -> bool:
    return request.priority is priority


def describe(report: Report) -> str:
    """The report for people: a drawing of the tower, then figures."""
    use = report.utilisation()
    lines = [
        (
            f"{len(report.requests):,} requests in {report.seconds:.0f} s on {TRAYS * SLOTS} TPUs; "
            f"{report.failures['fails']} failed, {report.failures['killed']} workers ended for a stuck one, "
            f"{report.failures['hot']} hot spells"
        ),
        (
            f"answered exactly once: {all(each.answers == 1 for each in report.requests)}; "
            f"begun again: {report.replays['pieces']} pieces, {report.replays['requests']} requests; "
            f"on the CPU: {report.on_cpu} invocations"
        ),
        (
            f"utilisation of the TPUs: mean {statistics.mean(use.values()):.2f}, "
            f"lowest {min(use.values()):.2f}, highest {max(use.values()):.2f}; fairness {report.fairness_of_tpus():.3f}"
        ),
    ]
    for tray in range(TRAYS):
        row = "".join(bar(use.get(f"pci-{tray * SLOTS + slot:03}", 0.0)) for slot in range(SLOTS))
        lines.append(f"  tray {tray + 1}  |{row}|")
    lines.append(f"{'milliseconds':<24}{'median':>9}{'95 %':>9}{'99.9 %':>9}")
    rows: list[tuple[str, Callable[[Request], bool]]] = [
        (f"{each.name.lower()} priority", partial(_of_priority, each))
        for each in (Priority.HIGH, Priority.NORMAL, Priority.LOW)
    ]
    rows += [
        ("batches of who sends half", lambda each: each.account == GREEDY and each.size > 1),
        ("batches of the others", lambda each: each.account != GREEDY and each.size > 1),
    ]
    for title, choose in rows:
        taken = report.latencies(choose)
        figures = "".join(f"{1000 * quantile(taken, share):9.1f}" for share in (0.5, 0.95, 0.999))
        lines.append(f"{title:<24}{figures}")
    return "\n".join(lines)


def main() -> None:
    seconds = float(sys.argv[1]) if sys.argv[1:] else 60.0
    seed = int(sys.argv[2]) if sys.argv[2:] else 1
    for load in (0.3, 0.7):
        print(f"load {load:.0%} of what all TPUs can do")
        print(describe(Tower(seconds=seconds, load=load, seed=seed).run()), end="\n\n")


if __name__ == "__main__":
    main()
