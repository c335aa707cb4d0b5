"""Errors of the supervisor.

SupervisorError
├── AlreadyRunning      another supervisor holds the state folder
└── ForkserverFailed    the forkserver ended or would not start
"""

from __future__ import annotations


class SupervisorError(Exception):
    """Why the supervisor cannot go on."""


class AlreadyRunning(SupervisorError):
    """The lock of the state folder is held."""


class ForkserverFailed(SupervisorError):
    """No worker can be started."""
