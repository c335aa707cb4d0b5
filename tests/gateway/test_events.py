"""Events for those who listen, bounded."""

from __future__ import annotations

import asyncio

from appliance.gateway.events import EVENTS_KEPT, Events
from appliance.wire.messages import EventsLost, Repair, RepairChanged, Severity


def event(number: int) -> RepairChanged:
    repair = Repair(
        id=f"r{number}", kind="k", subject="s", severity=Severity.WARNING, since=0, what="w", advice="a"
    )
    return RepairChanged(repair=repair)


async def test_the_newest_are_kept_and_the_rest_is_counted() -> None:
    events = Events()
    listener = events.listen()
    for number in range(EVENTS_KEPT + 5):
        events.publish(event(number))
    events.publish(EventsLost(count=2))
    assert await listener.next() == EventsLost(count=7)
    for number in range(5, EVENTS_KEPT + 5):
        assert await listener.next() == event(number)
    waiting = asyncio.create_task(listener.next())
    await asyncio.sleep(0)
    assert not waiting.done()
    events.publish(event(0))
    assert await waiting == event(0)


async def test_who_has_left_hears_nothing() -> None:
    events = Events()
    first, second = events.listen(), events.listen()
    events.publish(event(1))
    for listener in (first, second):
        events.forget(listener)
    events.publish(event(2))
    for listener in (first, second):
        assert await listener.next() == event(1)
        waiting = asyncio.create_task(listener.next())
        await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()
