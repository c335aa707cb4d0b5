"""Errors of the devices.

DevicesError            `code` is what a peer is told
├── NoSuchTpu
├── TpuNotUsable        nobody may open it now
├── ResetFailed         the kernel did not reset it
└── BadTrayIdentity     what lies in a tray's memory is no identity
"""

from __future__ import annotations


class DevicesError(Exception):
    """Base."""

    code = "failed"


class NoSuchTpu(DevicesError):
    code = "unknown_tpu"


class TpuNotUsable(DevicesError):
    code = "tpu_not_usable"


class ResetFailed(DevicesError):
    """`in_use`: somebody else has it open."""

    code = "reset_failed"

    def __init__(self, message: str, *, in_use: bool = False) -> None:
        super().__init__(message)
        self.in_use = in_use


class BadTrayIdentity(DevicesError):
    """The message is a sentence's end: "is ..."."""

    code = "bad_tray_identity"
