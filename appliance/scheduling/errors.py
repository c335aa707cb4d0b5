"""Errors of the scheduler.

SchedulingError         `code` is what the client is told
├── QueueFull           as many requests wait as may wait
├── DuplicateRequest    the same owner used a request id twice
└── Draining            the appliance is stopping
"""

from __future__ import annotations


class SchedulingError(Exception):
    """A lease that will not be given."""

    code = "unavailable"


class QueueFull(SchedulingError):
    code = "queue_full"

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} requests are waiting already; try again in a moment")


class DuplicateRequest(SchedulingError):
    code = "duplicate_request"

    def __init__(self, request_id: str) -> None:
        super().__init__(f"the request id {request_id} is in use; choose another")


class Draining(SchedulingError):
    code = "stopping"

    def __init__(self) -> None:
        super().__init__("the appliance is stopping; try again when it is back")
