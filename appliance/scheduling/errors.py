"""Errors of the scheduler.

SchedulingError         `code` is what the client is told
├── QueueFull           as many requests wait as may wait
├── DuplicateRequest    the same owner used a request id twice
├── UnknownModel        no worker is kept for that model
├── UnknownAdapter      no worker of the model has that adapter
├── NothingServed       no worker is kept for any model
├── NoWorker            a worker is kept for the model, and none is ready
└── Draining            the appliance is stopping
"""

from __future__ import annotations

from collections.abc import Iterable


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


class UnknownModel(SchedulingError):
    code = "unknown_model"

    def __init__(self, model: str, known: Iterable[str]) -> None:
        names = ", ".join(sorted(known)) or "none"
        super().__init__(f"no worker serves the model {model!r}; there are: {names}")


class UnknownAdapter(SchedulingError):
    code = "unknown_adapter"

    def __init__(self, adapter: str, model: str, known: Iterable[str]) -> None:
        names = ", ".join(sorted(known)) or "none"
        super().__init__(f"the model {model!r} has no adapter {adapter!r}; there are: {names}")


class NothingServed(SchedulingError):
    def __init__(self) -> None:
        super().__init__("no model is served; `coral-reef status` says why")


class NoWorker(SchedulingError):
    def __init__(self, model: str) -> None:
        super().__init__(f"no worker is ready to run {model}; try again in a moment")


class Draining(SchedulingError):
    code = "stopping"

    def __init__(self) -> None:
        super().__init__("the appliance is stopping; try again when it is back")
