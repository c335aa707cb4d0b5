"""One readable log: `12:00:01 gateway    what happened`. Every process writes to the standard error that it was given.

When that is the journal, each message goes there whole, with its priority and fields of its own instead: SYSLOG_IDENTIFIER is
`coral-reef-PART`, CORAL_REEF_PART the part (supervisor, gateway, worker), CORAL_REEF_NAME which worker. What a call gives as
`extra` becomes a field too.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import TextIO


class _Formatter(logging.Formatter):
    """Time, source, message; a level only when it is above INFO."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self._source = source

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        text = f"{clock} {self._source:<14} {level}{record.getMessage()}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


#: Libraries that tell too much at INFO.
_TALKATIVE = ("alembic", "uvicorn", "httpx", "httpcore")


def set_up_logging(source: str, *, level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Replaces the root logger's handlers by one that names `source`, `PART` or `PART NAME`, with each message; on `stream`, or
    where standard error goes."""
    handler: logging.Handler
    if stream is None and _stderr_is_the_journal():
        from systemd.journal import JournalHandler

        part, _, name = source.partition(" ")
        fields = {"CORAL_REEF_PART": part} | ({"CORAL_REEF_NAME": name} if name else {})
        handler = JournalHandler(SYSLOG_IDENTIFIER=f"coral-reef-{part}", **fields)
    else:
        handler = logging.StreamHandler(stream or sys.stderr)
        handler.setFormatter(_Formatter(source))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)


def _stderr_is_the_journal() -> bool:
    """Whether nobody has redirected the stream that systemd gave: systemd.exec(5), $JOURNAL_STREAM."""
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
