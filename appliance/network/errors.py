"""Errors of the network.

NetworkError
├── BadMachineId    the machine has no usable identity
├── StepFailed      a step of the USB gadget; everything before it was undone
├── CommandFailed   ip or nft said no, or is not there
└── NoSuchRevision  the history does not go back so far
"""

from __future__ import annotations


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
