"""What the supervisor tells of the appliance, for the WebSockets of administrators: bounded, the newest kept."""

from __future__ import annotations

import asyncio
from collections import deque

from appliance.wire.messages import EventsLost, RepairChanged, TpuChanged, WorkerChanged

SystemEvent = RepairChanged | WorkerChanged | TpuChanged | EventsLost

#: Events that wait for a client that does not read.
EVENTS_KEPT = 64


class Listener:
    """The events for one client."""

    def __init__(self) -> None:
        self._kept: deque[SystemEvent] = deque(maxlen=EVENTS_KEPT)
        self._lost = 0
        self._more = asyncio.Event()

    def hear(self, event: SystemEvent) -> None:
        """Keeps it; the oldest goes when there is no room."""
        if isinstance(event, EventsLost):
            self._lost += event.count
        else:
            self._lost += len(self._kept) == EVENTS_KEPT
            self._kept.append(event)
        self._more.set()

    async def next(self) -> SystemEvent:
        """The oldest that is kept; before it, how many were left out."""
        while not (self._lost or self._kept):
            self._more.clear()
            await self._more.wait()
        if self._lost:
            lost, self._lost = self._lost, 0
            return EventsLost(count=lost)
        return self._kept.popleft()


class Events:
    """All who listen in this process."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()

    def listen(self) -> Listener:
        """One more, who hears what happens from now on until `forget`."""
        listener = Listener()
        self._listeners.add(listener)
        return listener

    def forget(self, listener: Listener) -> None:
        """It hears no more."""
        self._listeners.discard(listener)

    def publish(self, event: SystemEvent) -> None:
        """Lets everybody hear it."""
        for listener in self._listeners:
            listener.hear(event)
