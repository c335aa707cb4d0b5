"""Leases: at most `slots` a worker, one a session, the rest waits in order.

Pure bookkeeping without clock or socket: each call returns what it granted, and the control socket tells the gateways. A lease
belongs to an *owner* (a gateway's connection) and ends with it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from .errors import Draining, DuplicateRequest, QueueFull

Owner = Hashable


@dataclass(frozen=True)
class Request:
    """A wish for a place. `model` is empty for the default model."""

    owner: Owner
    request_id: str
    session_id: str
    model: str = ""


@dataclass(frozen=True)
class Lease:
    """A place on `worker` for one request; the session is locked while it lasts."""

    lease_id: str
    request: Request
    worker: str


@dataclass
class _Place:
    model: str
    slots: int
    leases: int = 0
    closing: bool = False


class LeaseTable:
    """All leases and all that wait."""

    def __init__(self, *, queue_limit: int) -> None:
        self.queue_limit = queue_limit
        self._workers: dict[str, _Place] = {}
        self._leases: dict[tuple[Owner, str], Lease] = {}
        self._waiting: OrderedDict[tuple[Owner, str], Request] = OrderedDict()
        self._locked: set[str] = set()
        self._last: dict[str, str] = {}
        self._count = 0
        self._draining = False

    # --- what is asked ----------------------------------------------------------------------------------------

    def request(self, request: Request) -> list[Lease]:
        """Grants at once or queues. Draining, QueueFull or DuplicateRequest when neither is possible."""
        key = (request.owner, request.request_id)
        if self._draining:
            raise Draining
        if key in self._leases or key in self._waiting:
            raise DuplicateRequest(request.request_id)
        if len(self._waiting) >= self.queue_limit and not self._place_for(request):
            raise QueueFull(self.queue_limit)
        self._waiting[key] = request
        return self._grant()

    def settle(self, owner: Owner, request_id: str) -> list[Lease]:
        """Ends a lease, or withdraws a request that waits; unknown ids are ignored (the worker may have died)."""
        key = (owner, request_id)
        self._waiting.pop(key, None)
        lease = self._leases.pop(key, None)
        if lease is not None:
            self._free(lease)
        return self._grant()

    def owner_gone(self, owner: Owner) -> list[Lease]:
        """Ends everything of a gateway that disconnected."""
        for key in [key for key in self._waiting if key[0] == owner]:
            del self._waiting[key]
        for key in [key for key in self._leases if key[0] == owner]:
            self._free(self._leases.pop(key))
        return self._grant()

    # --- what happens to workers ---------------------------------------------------------------------------------

    def worker_ready(self, name: str, *, model: str, slots: int) -> list[Lease]:
        """A worker takes leases from now on."""
        running = sum(lease.worker == name for lease in self._leases.values())
        self._workers[name] = _Place(model, slots, running)
        return self._grant()

    def worker_closing(self, name: str) -> None:
        """A worker takes no new leases; those that it has go on."""
        if name in self._workers:
            self._workers[name].closing = True

    def worker_gone(self, name: str) -> list[Lease]:
        """A worker takes no more; its leases are over, their streams end by themselves."""
        self._workers.pop(name, None)
        for key in [key for key, lease in self._leases.items() if lease.worker == name]:
            self._locked.discard(self._leases.pop(key).request.session_id)
        return self._grant()

    def drain(self) -> list[Request]:
        """No new leases; what waited is returned, to be refused."""
        self._draining = True
        waiting = list(self._waiting.values())
        self._waiting.clear()
        return waiting

    # --- what is so ------------------------------------------------------------------------------------------------

    @property
    def leases(self) -> int:
        return len(self._leases)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def leases_of(self, worker: str) -> int:
        place = self._workers.get(worker)
        return place.leases if place else 0

    def is_leased(self, owner: Owner, request_id: str) -> bool:
        return (owner, request_id) in self._leases

    def is_waiting(self, owner: Owner, request_id: str) -> bool:
        return (owner, request_id) in self._waiting

    # --- inside ---------------------------------------------------------------------------------------------------

    def _place_for(self, request: Request) -> str | None:
        """The worker that the session had last, if it has room (its KV cache is warm), else the least loaded."""
        if request.session_id in self._locked:
            return None
        able = [
            name
            for name, place in self._workers.items()
            if place.leases < place.slots and not place.closing and request.model in ("", place.model)
        ]
        if not able:
            return None
        last = self._last.get(request.session_id)
        return last if last in able else min(able, key=lambda name: self._workers[name].leases)

    def _grant(self) -> list[Lease]:
        granted = []
        for key, request in list(self._waiting.items()):
            worker = self._place_for(request)
            if worker is None:
                continue
            del self._waiting[key]
            self._count += 1
            lease = Lease(f"lease-{self._count}", request, worker)
            self._leases[key] = lease
            self._workers[worker].leases += 1
            self._locked.add(request.session_id)
            self._remember(request.session_id, worker)
            granted.append(lease)
        return granted

    def _remember(self, session_id: str, worker: str) -> None:
        self._last.pop(session_id, None)
        self._last[session_id] = worker
        if len(self._last) > 10_000:
            del self._last[next(iter(self._last))]

    def _free(self, lease: Lease) -> None:
        self._locked.discard(lease.request.session_id)
        place = self._workers.get(lease.worker)
        if place is not None:
            place.leases -= 1
