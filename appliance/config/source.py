"""Reading a file of the owner's as text, whatever it turns out to be."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from appliance.config.errors import Problem, SourceError

#: Ten thousand times what a complete file needs, small enough for PyYAML, which reads some 100 KB a second.
FILE_LIMIT_BYTES = 256 * 1024


def read_source(path: Path) -> str | None:
    """The text of `path`, or None when there is no such file.

    Raises SourceError for everything else: a folder, a pipe, no permission, a link to nothing, too many
    bytes, bytes that are not UTF-8 or hold a NUL.
    """
    try:
        content = read_regular_file(path, FILE_LIMIT_BYTES)
    except FileNotFoundError:
        if not path.is_symlink():
            return None
        raise _unreadable(path, "is a link to a file that does not exist, expected a file") from None
    except IsADirectoryError:
        raise _unreadable(path, "is a folder, expected a file") from None
    except PermissionError:
        raise _unreadable(path, "may not be read by this user, expected permission to read it") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise _unreadable(path, f"cannot be read ({reason}), expected a file") from None
    if content is None:
        raise _unreadable(path, f"is larger than {FILE_LIMIT_BYTES // 1024} KiB, expected less")
    try:
        # A byte order mark is what some editors of other systems put first; it means nothing.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _unreadable(path, "holds bytes that are no text, expected UTF-8", line) from None
    if (offset := text.find("\0")) >= 0:
        line = text.count("\n", 0, offset) + 1
        raise _unreadable(path, "holds a NUL character, expected text", line)
    return text


def read_regular_file(path: Path, limit_bytes: int) -> bytes | None:
    """The bytes of a regular file, None when there are more than `limit_bytes`. Raises OSError, ValueError.

    Without blocking: a pipe in place of a file must not stop the appliance from starting.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY), "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError
        if not stat.S_ISREG(mode):
            raise ValueError("not a regular file")
        content = file.read(limit_bytes + 1)
    return content if len(content) <= limit_bytes else None


def _unreadable(path: Path, message: str, line: int = 1) -> SourceError:
    return SourceError([Problem(str(path), line, "", message)])
