"""One readable log: `12:00:01 gateway    what happened`. Every process writes to the standard error that it was given."""

from __future__ import annotations

import logging
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
    """Replaces the root logger's handlers by one that names `source` in each line, on `stream` or standard error."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Formatter(source))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
