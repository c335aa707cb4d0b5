"""Errors of the supervisor.

SupervisorError
├── AlreadyRunning      another supervisor holds the state folder
├── ForkserverFailed    the forkserver ended or would not start
├── SubsystemDead       a part of the supervisor does not do its work any more
└── RequestFailed       what a peer asked for cannot be done; `code` is what it is told
    ├── NoSuchWorker, NoSuchRepair
    ├── NotFixable      a repair that only the owner can see to
    ├── RestartFailed   a worker did not become ready again
    └── ReloadRefused   the configuration has errors; the one that runs stays
"""

from __future__ import annotations


class SupervisorError(Exception):
    """Why the supervisor cannot go on."""


class AlreadyRunning(SupervisorError):
    """The lock of the state folder is held."""


class ForkserverFailed(SupervisorError):
    """No worker can be started."""


class SubsystemDead(SupervisorError):
    """Only a new supervisor helps."""


class RequestFailed(SupervisorError):
    """A request over the control socket that cannot be carried out."""

    code = "failed"


class NoSuchWorker(RequestFailed):
    code = "unknown_worker"


class NoSuchRepair(RequestFailed):
    code = "unknown_repair"


class NotFixable(RequestFailed):
    code = "not_fixable"


class RestartFailed(RequestFailed):
    code = "restart_failed"


class ReloadRefused(RequestFailed):
    """The message holds one problem a line."""

    code = "bad_configuration"
