"""Which worker runs the invocations of a request: TPU workers, or the CPU's with the same models.

Pure bookkeeping, as `leases`, and simpler: an invocation takes milliseconds, has no session and no adapter, and what has to
wait waits in the worker, by priority. So a lease is granted at once or refused.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass

from .errors import DuplicateRequest, NoWorker, QueueFull, UnknownModel

Owner = Hashable


@dataclass(slots=True, eq=False)
class _Worker:
    """`capacity` counts devices that run at the same time, 0 while there are none."""

    name: str
    models: frozenset[str]
    capacity: int
    tpu: bool
    leases: int = 0
    invocations: int = 0
    turn: int = 0

    def rank(self) -> tuple[bool, float, int]:
        """TPUs first; then the least loaded for what it can do; then the one whose turn it is."""
        return not self.tpu, self.invocations / self.capacity, self.turn


class InvokeLeases:
    """All leases for invocations. `limit` is how many there may be at a time, and may be changed."""

    def __init__(self, *, limit: int) -> None:
        self.limit = limit
        self._workers: dict[str, _Worker] = {}
        self._leases: dict[Owner, dict[str, tuple[_Worker, int]]] = {}
        self._kinds: dict[str, str] = {}
        self._count = 0
        self._turns = 0

    def expect(self, kinds: Mapping[str, str]) -> None:
        """The models that there are, with their kinds: one of them that nobody runs yet is not unknown."""
        self._kinds = dict(kinds)

    def worker(self, name: str, *, models: Collection[str], capacity: int, tpu: bool) -> None:
        """A worker runs these models on so many devices from now on."""
        before = self._workers.get(name)
        if before is None:
            self._workers[name] = _Worker(name, frozenset(models), capacity, tpu)
        else:
            before.models, before.capacity, before.tpu = frozenset(models), capacity, tpu

    def worker_gone(self, name: str) -> None:
        """Its process ended, and its leases with it: gateways ask again."""
        worker = self._workers.pop(name, None)
        if worker is None:
            return
        for owner, leases in list(self._leases.items()):
            for request_id in [each for each, (lessor, _) in leases.items() if lessor is worker]:
                self.settle(owner, request_id)

    def request(
        self, owner: Owner, request_id: str, *, kind: str, model: str = "", invocations: int, avoid: str = ""
    ) -> tuple[str, str]:
        """The worker to ask, and the model, which is the first of its kind when none is named.

        DuplicateRequest, QueueFull, UnknownModel, or NoWorker while none is ready. `avoid` is chosen when there is no other.
        """
        leases = self._leases.get(owner, {})
        if request_id in leases:
            raise DuplicateRequest(request_id)
        of_kind = sorted(name for name, each in self._kinds.items() if each == kind)
        if not of_kind or (model and model not in of_kind):
            raise UnknownModel(model or kind, of_kind)
        model = model or of_kind[0]
        able = [each for each in self._workers.values() if model in each.models and each.capacity > 0]
        if not able:
            raise NoWorker(model)
        if self._count >= self.limit:
            raise QueueFull(self.limit)
        others = [each for each in able if each.name != avoid]
        worker = min(others or able, key=_Worker.rank)
        self._turns += 1
        self._count += 1
        worker.turn = self._turns
        worker.leases += 1
        worker.invocations += invocations
        self._leases.setdefault(owner, {})[request_id] = worker, invocations
        return worker.name, model

    def settle(self, owner: Owner, request_id: str) -> bool:
        """Ends a lease; False when there is none of that name."""
        leases = self._leases.get(owner, {})
        found = leases.pop(request_id, None)
        if found is None:
            return False
        if not leases:
            self._leases.pop(owner, None)
        worker, invocations = found
        worker.leases -= 1
        worker.invocations -= invocations
        self._count -= 1
        return True

    def owner_gone(self, owner: Owner) -> None:
        """Ends all leases of a gateway that disconnected."""
        for request_id in list(self._leases.get(owner, ())):
            self.settle(owner, request_id)

    def leases_of(self, worker: str) -> int:
        found = self._workers.get(worker)
        return found.leases if found else 0

    @property
    def leases(self) -> int:
        return self._count
