"""Leases: at most `slots` a worker, one adapter a worker at a time, one a session; the rest waits in order.

Pure bookkeeping without clock or socket: each call returns what it granted, and the control socket tells the gateways. A lease
belongs to an *owner* (a gateway's connection) and ends with it.

What a request or its end costs grows neither with the workers nor with sessions, leases and requests that wait: candidates are
kept in order (`placement.Pool`), requests wait in the line of their model and adapter, or behind their own session (`lines`), and
only lines where something changed are looked at again (`_changed`). It does grow with the adapters that a worker has.

Adapters: an idle worker takes any that it has. When nobody serves a line in which requests wait, one worker with another adapter
is *wanted* there: it takes no more leases, and changes when those it has are over. So two adapters on one worker take turns, each
filling the slots once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from heapq import heappop, heapreplace

from .errors import Draining, DuplicateRequest, NothingServed, QueueFull, UnknownAdapter, UnknownModel
from .lines import Entry, Lease, Line, Owner, Request, Session, Worker
from .placement import Placement, affinity

#: Sessions whose last worker is remembered.
SESSIONS_LIMIT = 10_000


class LeaseTable:
    """All leases and all that wait. `queue_limit` and `placement` may be changed at any time."""

    def __init__(self, *, queue_limit: int, placement: Placement = affinity) -> None:
        self.queue_limit = queue_limit
        self.placement = placement
        self._default_model = ""
        self._workers: dict[str, Worker] = {}
        self._lines: dict[str, dict[str, Line]] = {}  # by model and adapter
        self._entries: dict[Owner, dict[str, Entry]] = {}  # by request id
        self._sessions: dict[str, Session] = {}
        self._last: OrderedDict[str, str] = OrderedDict()
        self._changed: dict[Line, None] = {}
        self._arrivals = 0
        self._grants = 0
        self._leases = 0
        self._waiting = 0
        self._draining = False

    # --- what is asked ----------------------------------------------------------------------------------------

    def request(self, request: Request) -> list[Lease]:
        """Grants at once or queues. SchedulingError when neither is possible."""
        owner, request_id, session_id = request.owner, request.request_id, request.session_id
        if self._draining:
            raise Draining
        if request_id in self._entries.get(owner, ()):
            raise DuplicateRequest(request_id)
        line = self._line_of(request)
        session = self._sessions.get(session_id)
        # With a candidate in the pool, nobody stands in the line.
        if self._waiting >= self.queue_limit and (session is not None or not line.pool):
            raise QueueFull(self.queue_limit)
        self._arrivals += 1
        entry = Entry(request, self._arrivals, line)
        self._entries.setdefault(owner, {})[request_id] = entry
        self._waiting += 1
        line.arrivals[entry] = None
        if session is None:
            self._sessions[session_id] = entry.session = Session(entry)
            self._stand(entry)
        else:
            entry.session = session
            session.behind[entry] = None
        return self._grant()

    def settle(self, owner: Owner, request_id: str) -> list[Lease]:
        """Ends a lease, or withdraws a request that waits; unknown ids are ignored (the worker may have died)."""
        entry = self._entries.get(owner, {}).get(request_id)
        if entry is not None:
            self._end(entry)
        return self._grant()

    def owner_gone(self, owner: Owner) -> list[Lease]:
        """Ends everything of a gateway that disconnected."""
        for entry in list(self._entries.get(owner, {}).values()):
            self._end(entry)
        return self._grant()

    # --- what happens to workers ---------------------------------------------------------------------------------

    def worker_expected(self, name: str, *, model: str, adapters: Collection[str] = ()) -> list[Lease]:
        """A worker is kept: what it will serve is known from now on, and requests for it wait.

        One of the same name that served something else is removed by this.
        """
        self._keep(name, model, adapters)
        return self._grant()

    def worker_ready(
        self, name: str, *, model: str, slots: int, adapters: Collection[str] = ()
    ) -> list[Lease]:
        """A worker takes leases from now on, with any of these adapters or none."""
        worker = self._keep(name, model, adapters)
        worker.slots, worker.open = slots, True
        self._sit(worker)
        self._changed.update(dict.fromkeys(worker.lines.values()))
        return self._grant()

    def worker_closing(self, name: str) -> None:
        """A worker takes no more leases; those that it has go on."""
        worker = self._workers.get(name)
        if worker is not None:
            self._close(worker)
            self._grant()  # nothing is free that was not before, but another worker may be wanted now

    def worker_retiring(self, name: str) -> None:
        """As `worker_closing`, and it will not come back: what nobody else serves is unknown from now on."""
        worker = self._workers.get(name)
        if worker is not None:
            self._close(worker)
            self._unkeep(worker)
            self._grant()

    def worker_gone(self, name: str) -> list[Lease]:
        """A worker's process ended; its leases are over, their streams end by themselves. What waits for it waits on."""
        worker = self._workers.get(name)
        if worker is not None:
            self._close(worker)
            for entry in list(worker.leases):
                self._end(entry)
            worker.adapter = ""
        return self._grant()

    def worker_removed(self, name: str) -> list[Lease]:
        """A worker is kept no more. What waits for a model that nobody serves now waits on, in case that somebody will."""
        worker = self._workers.get(name)
        if worker is not None:
            self._dismiss(worker)
        return self._grant()

    def set_default_model(self, model: str) -> list[Lease]:
        """Who names no model gets this one, also who waits already. Until it is set, the first worker's model is the default."""
        self._default_model = model
        self._gather_default()
        return self._grant()

    def drain(self) -> list[Request]:
        """No new leases; what waited is returned in order, to be refused."""
        self._draining = True
        waiting = sorted(
            (entry for line in self._all_lines() for entry in line.arrivals), key=lambda entry: entry.number
        )
        for entry in waiting:
            self._end(entry)
        self._grant()
        return [entry.request for entry in waiting]

    # --- what is so ------------------------------------------------------------------------------------------------

    @property
    def leases(self) -> int:
        return self._leases

    @property
    def waiting(self) -> int:
        return self._waiting

    def leases_of(self, worker: str) -> int:
        found = self._workers.get(worker)
        return len(found.leases) if found else 0

    def adapter_of(self, worker: str) -> str:
        """The adapter of a worker's leases, or of those it had last."""
        found = self._workers.get(worker)
        return found.adapter if found else ""

    def is_leased(self, owner: Owner, request_id: str) -> bool:
        entry = self._entries.get(owner, {}).get(request_id)
        return entry is not None and entry.worker is not None

    def is_waiting(self, owner: Owner, request_id: str) -> bool:
        entry = self._entries.get(owner, {}).get(request_id)
        return entry is not None and entry.worker is None

    def positions(self) -> Iterator[tuple[Request, int]]:
        """All that waits, each with its place among those that wait for the same model and adapter; 1 is the next."""
        for line in self._all_lines():
            for position, entry in enumerate(line.arrivals, 1):
                yield entry.request, position

    # --- inside: requests -------------------------------------------------------------------------------------------

    def _all_lines(self) -> Iterator[Line]:
        return (line for lines in self._lines.values() for line in lines.values())

    def _line_of(self, request: Request) -> Line:
        model = request.model or self._default_model or next(self._served(), "")
        adapters = self._lines.get(model, {})
        line = adapters.get(request.adapter)
        if line is not None and line.kept:
            return line
        served = list(self._served())
        if not served:
            raise NothingServed
        if model not in served:
            raise UnknownModel(model, served)
        known = [name for name, each in adapters.items() if name and each.kept]
        raise UnknownAdapter(request.adapter, model, known)

    def _served(self) -> Iterator[str]:
        """The models that workers are kept for; each of them works without an adapter too."""
        return (model for model, lines in self._lines.items() if "" in lines and lines[""].kept)

    def _stand(self, entry: Entry) -> None:
        entry.line.stand(entry)
        self._changed[entry.line] = None

    def _end(self, entry: Entry) -> None:
        """A request is over, wherever it was; the next of its session may go on."""
        request, session, worker = entry.request, entry.session, entry.worker
        of_owner = self._entries[request.owner]
        del of_owner[request.request_id]
        if not of_owner:
            del self._entries[request.owner]
        if worker is not None:
            self._leases -= 1
            del worker.leases[entry]
            self._sit(worker)
        else:
            self._waits_no_more(entry)
        if session.first is not entry:
            del session.behind[entry]
        elif session.behind:
            session.first, _ = session.behind.popitem(last=False)
            self._stand(session.first)
        else:
            del self._sessions[request.session_id]

    def _waits_no_more(self, entry: Entry) -> None:
        self._waiting -= 1
        entry.line.leave(entry)
        self._look_after(entry.line)

    def _look_after(self, line: Line) -> None:
        """After requests have left a line: without any, no worker is wanted there; without workers, it is no more."""
        if line.awaited is not None and line.head is None:
            self._set_free(line.awaited)
        lines = self._lines.get(line.model, {})
        if not line.kept and not line.arrivals and lines.get(line.adapter) is line:
            del lines[line.adapter]
            if not lines:
                del self._lines[line.model]

    def _gather_default(self) -> None:
        """Who named no model stands in the lines of the present default, where it has the adapter."""
        for adapter, target in self._lines.get(self._default_model, {}).items():
            for lines in list(self._lines.values()):
                line = lines.get(adapter)
                if line is None or line is target:
                    continue
                line.move_to(target, [entry for entry in line.arrivals if not entry.request.model])
                self._changed[target] = None
                self._look_after(line)

    # --- inside: workers --------------------------------------------------------------------------------------------

    def _keep(self, name: str, model: str, adapters: Collection[str]) -> Worker:
        worker = self._workers.get(name)
        names = dict.fromkeys(("", *adapters))
        if worker is not None:
            same = worker.model == model and worker.lines.keys() == names.keys()
            if same and name in worker.line.kept:
                return worker
            self._dismiss(worker)  # or it was on its way out
        lines = self._lines.setdefault(model, {})
        for adapter in names:
            lines.setdefault(adapter, Line(model, adapter)).kept.add(name)
        self._workers[name] = worker = Worker(name, model, {adapter: lines[adapter] for adapter in names})
        if model == self._default_model:
            self._gather_default()
        return worker

    def _sit(self, worker: Worker) -> None:
        self._changed.update(dict.fromkeys(worker.sit()))

    def _set_free(self, worker: Worker) -> None:
        """A worker is not wanted any more: others may want it now."""
        if worker.wanted is not None:
            self._changed.update(dict.fromkeys(worker.lines.values()))
            worker.wanted.awaited = None
            worker.wanted = None
            self._sit(worker)

    def _close(self, worker: Worker) -> None:
        worker.open = False
        self._set_free(worker)
        self._sit(worker)
        self._changed.update(dict.fromkeys(worker.lines.values()))

    def _dismiss(self, worker: Worker) -> None:
        self._close(worker)
        for entry in list(worker.leases):
            self._end(entry)
        del self._workers[worker.name]
        self._unkeep(worker)

    def _unkeep(self, worker: Worker) -> None:
        for line in worker.lines.values():
            line.kept.discard(worker.name)
            self._look_after(line)

    # --- inside: grants ---------------------------------------------------------------------------------------------

    def _grant(self) -> list[Lease]:
        """Looks at the lines where something changed: gives places to the oldest requests while there are places for them, and
        sees that lines with requests are served at all."""
        granted: list[Lease] = []
        while self._changed:
            heads = _heads(self._changed)
            self._changed.clear()
            todo = heads.copy()
            while todo:
                line = todo[0][1]
                if line.pool and (entry := line.head) is not None:
                    granted.append(self._give(entry))
                    if (entry := line.head) is not None:
                        heapreplace(todo, (entry.number, line))
                        continue
                heappop(todo)
            for _, line in heads:
                if line.awaited is None and not line.serving and line.head is not None:
                    self._want_a_worker(line)
        return granted

    def _give(self, entry: Entry) -> Lease:
        request, line = entry.request, entry.line
        worker = self._workers[self.placement(line.pool.view(self._last.get(request.session_id)))]
        if worker.wanted is line:
            line.awaited = worker.wanted = None
        self._waits_no_more(entry)
        if not worker.leases and len(worker.lines) > 1:
            # The others have lost a candidate, or gain one that they may want.
            self._changed.update(dict.fromkeys(worker.lines.values()))
        self._grants += 1
        self._leases += 1
        entry.worker = worker
        worker.adapter = line.adapter
        worker.turn = self._grants
        worker.leases[entry] = None
        worker.sit()
        self._last[request.session_id] = worker.name
        self._last.move_to_end(request.session_id)
        if len(self._last) > SESSIONS_LIMIT:
            self._last.popitem(last=False)
        return Lease(f"lease-{self._grants}", request, worker.name)

    def _want_a_worker(self, line: Line) -> None:
        """Of the workers that serve other adapters, the one with the fewest leases is to change to this line's.

        The only search among workers: it happens once for each time that a worker changes.
        """
        others = (other for other in self._lines[line.model].values() if other is not line)
        able = [worker for other in others for worker in other.serving if line.adapter in worker.lines]
        if not able:
            return  # all are wanted elsewhere or not ready: looked at again when one has changed
        worker = min(able, key=lambda worker: (len(worker.leases), worker.name))
        worker.wanted, line.awaited = line, worker
        worker.sit()
        self._changed[worker.line] = None  # which may have lost its last one


def _heads(lines: Iterable[Line]) -> list[tuple[int, Line]]:
    """The lines in which requests stand, each with the number of its oldest, the oldest first."""
    heads = [(head.number, line) for line in lines if (head := line.head) is not None]
    return sorted(heads, key=lambda each: each[0]) if len(heads) > 1 else heads
