"""Errors of the network.

NetworkError
├── BadMachineId    the machine has no usable identity
├── StepFailed      a step of the USB gadget; everything before it was undone
├── CommandFailed   ip or nft said no, or is not there
├── NoSuchRevision  the history does not go back so far
├── Unmanaged       there is no network.yaml, so that nothing is touched
├── Busy            one change at a time
├── NothingToConfirm
├── BadSettings     a profile's settings are not what they should be, theirs or ours
├── NetworkManagerFailed       it said no, or did not answer
│   └── NetworkManagerMissing  there is nobody to ask
├── ActivationFailed    a profile did not become active
└── ApplyFailed         a change of the network failed; everything is as it was before
    └── Unfinished      it is not, or not yet: what is left to do is recorded, and done when NetworkManager is back
"""

from __future__ import annotations

from enum import StrEnum


class NetworkError(Exception):
    """Base. The message says what failed and what the kernel or the program said."""


class BadMachineId(NetworkError):
    pass


class StepFailed(NetworkError):
    """`busy`: another gadget has the controller."""

    def __init__(self, message: str, *, busy: bool = False) -> None:
        super().__init__(message)
        self.busy = busy


class CommandFailed(NetworkError):
    pass


class NoSuchRevision(NetworkError):
    pass


class Unmanaged(NetworkError):
    pass


class Busy(NetworkError):
    pass


class NothingToConfirm(NetworkError):
    pass


class BadSettings(NetworkError):
    pass


class NetworkManagerFailed(NetworkError):
    """`name` is the D-Bus error's; empty when there was no answer in time."""

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class NetworkManagerMissing(NetworkManagerFailed):
    pass


class Failure(StrEnum):
    """Why a profile did not become active, as far as somebody can do something about it."""

    NO_ADDRESS = "no address"
    NO_CARRIER = "no carrier"
    WRONG_PASSWORD = "wrong password"  # noqa: S105
    NOT_FOUND = "Wi-Fi network not found"
    NO_DEVICE = "no device"
    OTHER = "other"


class ActivationFailed(NetworkError):
    """The message says what happened and what to do."""

    def __init__(self, message: str, failure: Failure) -> None:
        super().__init__(message)
        self.failure = failure


class ApplyFailed(NetworkError):
    """`step` is what was being done; the message says what was expected and what was found."""

    def __init__(self, message: str, step: str = "") -> None:
        super().__init__(message)
        self.step = step


class Unfinished(ApplyFailed):
    pass
