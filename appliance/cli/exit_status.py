"""Exit statuses of `coral-reef`, those of sysexits(3) where one fits."""

from __future__ import annotations

import os
from enum import IntEnum


class ExitStatus(IntEnum):
    """What a script may rely on; `coral-reef --help` lists them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    BAD_MODEL = os.EX_DATAERR  # 65
    UNAVAILABLE = os.EX_UNAVAILABLE  # 69
    CANNOT_CREATE = os.EX_CANTCREAT  # 73
    BAD_DATABASE = os.EX_IOERR  # 74
    IN_USE = os.EX_TEMPFAIL  # 75
    REFUSED = os.EX_NOPERM  # 77
    BAD_CONFIGURATION = os.EX_CONFIG  # 78
    INTERRUPTED = 130


MEANINGS = {
    ExitStatus.OK: "done",
    ExitStatus.FAILED: "the appliance answered with an error",
    ExitStatus.USAGE: "wrong use of the command",
    ExitStatus.BAD_MODEL: "a model's file is damaged, incomplete or of the wrong kind",
    ExitStatus.UNAVAILABLE: "the appliance is not running, or a part of it does not start",
    ExitStatus.CANNOT_CREATE: "a folder or file cannot be written, or the disk is full",
    ExitStatus.BAD_DATABASE: "the database or its key cannot be used",
    ExitStatus.IN_USE: "the port, the state folder or the model is in use",
    ExitStatus.REFUSED: "the API key was refused, or this user may not use the appliance",
    ExitStatus.BAD_CONFIGURATION: "a configuration file has errors",
    ExitStatus.INTERRUPTED: "stopped by Ctrl-C",
}


class Failed(Exception):
    """Ends the command with one line on standard error."""

    def __init__(self, message: str, status: ExitStatus = ExitStatus.FAILED) -> None:
        super().__init__(message)
        self.status = status
