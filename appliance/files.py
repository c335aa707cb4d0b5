"""Files that survive: written so that a power cut leaves the old content or the new, and locks that end with their holder."""

from __future__ import annotations

import fcntl
import os
import re
import stat
import tempfile
from pathlib import Path
from types import TracebackType


def write_atomically(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replaces `path` by `content`: a temporary file beside it, fsync, rename, fsync of the folder.

    `mode` holds from the first byte on, whatever the umask.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    sync_folder(path.parent)


def create_secret(path: Path, content: bytes) -> bool:
    """Writes a new file of mode 0600; False (and nothing written) when there is one already.

    The link makes it appear whole or not at all, and only once when several processes try.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(name, path)
        except FileExistsError:
            return False
    finally:
        os.unlink(name)
    sync_folder(path.parent)
    return True


class SecretUnusable(Exception):
    """`why` goes on after the file's name; `remedy` is for a person. `broken`: it can be read, and holds no secret."""

    def __init__(self, why: str, remedy: str, *, broken: bool = False) -> None:
        super().__init__(why)
        self.why, self.remedy, self.broken = why, remedy, broken


def read_secret(path: Path, size_bytes: int) -> bytes:
    """The bytes that a file holds as hexadecimal digits and perhaps a line end. SecretUnusable when it is unreadable, open to
    others, or holds anything else."""
    try:
        # Without O_NONBLOCK a FIFO in its place would hold us up forever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SecretUnusable(
            f"cannot be opened: {error.strerror}",
            f"Make {path} readable for the user of this service, and for nobody else",
        ) from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise SecretUnusable("is not a regular file", f"Restore {path} from a backup", broken=True)
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise SecretUnusable(
                f"is open to other users (mode {stat.S_IMODE(mode):04o})",
                f"Run `chmod 600 {path}`, and consider who may have read it",
            )
        content = os.read(descriptor, 2 * size_bytes + 2)
    finally:
        os.close(descriptor)
    if not re.fullmatch(rb"[0-9a-fA-F]{%d}\n?" % (2 * size_bytes), content):
        raise SecretUnusable(
            f"does not hold {2 * size_bytes} hexadecimal digits", f"Restore {path} from a backup", broken=True
        )
    return bytes.fromhex(content.decode("ascii"))


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LockHeld(Exception):
    """Another process holds the lock; `holder` is its id, as it wrote it."""

    def __init__(self, holder: str) -> None:
        super().__init__(f"held by process {holder}")
        self.holder = holder


class FileLock:
    """A lock that one process holds; the kernel lets go when it dies. Entering raises LockHeld, and never waits."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    def __enter__(self) -> None:
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._descriptor)
            raise LockHeld(holder) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
