"""Errors of the supervisor.

SupervisorError
├── AlreadyRunning      another supervisor holds the state folder
├── ForkserverFailed    the forkserver ended or would not start
├── SubsystemDead       a part of the supervisor does not do its work any more
└── RequestFailed       what a peer asked for cannot be done; `code` is what it is told
    ├── NoSuchWorker, NoSuchRepair
    ├── NotFixable      a repair that only the owner can see to
    ├── RestartFailed   a worker did not become ready again
    ├── ReloadRefused   the configuration has errors; the one that runs stays
    ├── Denied          this peer, or who is logged in there, may not
    ├── WrongLogin, TooSoon, Busy   a login, and when the next one is heard
    ├── NoUsers, NotUsb the first user is still to be made, and only on a USB line
    ├── UnknownToken
    ├── NetworkRefused  a change of the network failed, or cannot be now; everything is as it was
    └── PowerUnavailable  systemd did not take the order to restart or switch off
"""

from __future__ import annotations

import logging
from math import ceil


class SupervisorError(Exception):
    """Why the supervisor cannot go on."""


class AlreadyRunning(SupervisorError):
    """The lock of the state folder is held."""


class ForkserverFailed(SupervisorError):
    """No worker can be started."""


class SubsystemDead(SupervisorError):
    """Only a new supervisor helps."""


class RequestFailed(SupervisorError):
    """A request over the control socket that cannot be carried out. Asked again before `retry_after_s`, it cannot either."""

    code = "failed"
    retry_after_s = 0.0
    log_level = logging.WARNING


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


class Denied(RequestFailed):
    code = "denied"


class WrongLogin(RequestFailed):
    """The same for a name that nobody has and for a wrong password."""

    code = "wrong_login"
    log_level = logging.DEBUG  # the log has the line

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("wrong name or password")
        self.retry_after_s = retry_after_s


class TooSoon(RequestFailed):
    """After wrong ones; this one was not even looked at."""

    code = "too_soon"
    log_level = logging.DEBUG  # strangers must not fill the log

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"too many wrong passwords; try again in {ceil(retry_after_s)} s")
        self.retry_after_s = retry_after_s


class Busy(RequestFailed):
    code = "busy"
    retry_after_s = 1.0

    def __init__(self) -> None:
        super().__init__("others are logging in; try again in a second")


class NoUsers(RequestFailed):
    code = "no_users"

    def __init__(self) -> None:
        super().__init__(
            "there is no user yet: make the first one on the USB line, or as root with 'coral-reef user add'"
        )


class NotUsb(RequestFailed):
    code = "not_usb"

    def __init__(self) -> None:
        super().__init__(
            "only who holds the USB cable may make the first user; as root, 'coral-reef user add' does too"
        )


class UnknownToken(RequestFailed):
    code = "unknown_token"
    log_level = logging.DEBUG

    def __init__(self) -> None:
        super().__init__("no session has this token (any more)")


class NetworkRefused(RequestFailed):
    """`busy`: another change waits for its confirmation."""

    code = "network_failed"

    def __init__(self, message: str, *, busy: bool = False) -> None:
        super().__init__(message)
        if busy:
            self.code = "busy"


class PowerUnavailable(RequestFailed):
    code = "power_unavailable"
