"""The few primitives that a gadget is made of. Each says what it does, knows whether it is done, and can undo itself."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from appliance.network.errors import StepFailed

log = logging.getLogger(__name__)

#: An attribute of configfs is at most a page.
ATTRIBUTE_LIMIT_BYTES = 4096


class Configfs:
    """What steps ask of the kernel. Raises OSError."""

    def make_folder(self, path: Path) -> None:
        path.mkdir()

    def remove_folder(self, path: Path) -> None:
        """Its attributes, and the folders that the kernel made in it, go with it."""
        path.rmdir()

    def write(self, path: Path, content: str) -> None:
        """One write(2), which is how the kernel takes an attribute; never makes a file."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, f"{content}\n".encode())
        finally:
            os.close(descriptor)

    def read(self, path: Path) -> str:
        """Without what pads it; empty when it cannot be read."""
        try:
            with path.open("rb") as file:
                return file.read(ATTRIBUTE_LIMIT_BYTES).decode("utf-8", "replace").strip("\0 \n")
        except OSError:
            return ""

    def link(self, path: Path, target: Path) -> None:
        path.symlink_to(target)

    def unlink(self, path: Path) -> None:
        path.unlink()


class Step(Protocol):
    """`do` and `undo` raise OSError; `undo` of what is not done does nothing."""

    def __str__(self) -> str: ...
    def done(self, tree: Configfs) -> bool: ...
    def do(self, tree: Configfs) -> None: ...
    def undo(self, tree: Configfs) -> None: ...


@dataclass(frozen=True)
class MakeFolder:
    """Configfs makes an object for each folder: the gadget, its strings, a configuration, a function."""

    path: Path

    def __str__(self) -> str:
        return f"make {self.path}"

    def done(self, tree: Configfs) -> bool:
        return self.path.is_dir()

    def do(self, tree: Configfs) -> None:
        tree.make_folder(self.path)

    def undo(self, tree: Configfs) -> None:
        if self.path.is_dir():
            tree.remove_folder(self.path)


@dataclass(frozen=True)
class Write:
    """An attribute goes away with its folder: there is nothing to undo."""

    path: Path
    content: str

    def __str__(self) -> str:
        return f"write {self.content!r} to {self.path}"

    def done(self, tree: Configfs) -> bool:
        return tree.read(self.path) == self.content

    def do(self, tree: Configfs) -> None:
        tree.write(self.path, self.content)

    def undo(self, tree: Configfs) -> None:
        pass


@dataclass(frozen=True)
class Link:
    """Puts a function into a configuration, or the configuration into the Windows descriptors."""

    path: Path
    target: Path

    def __str__(self) -> str:
        return f"link {self.path} to {self.target}"

    def done(self, tree: Configfs) -> bool:
        return self.path.is_symlink()

    def do(self, tree: Configfs) -> None:
        tree.link(self.path, self.target)

    def undo(self, tree: Configfs) -> None:
        if self.path.is_symlink():
            tree.unlink(self.path)


@dataclass(frozen=True)
class Bind:
    """Gives the gadget to a controller: from here on a desktop sees it. `path` is the gadget's attribute UDC."""

    path: Path
    controller: str

    def __str__(self) -> str:
        return f"bind {self.path.parent} to {self.controller}"

    def done(self, tree: Configfs) -> bool:
        return tree.read(self.path) == self.controller

    def do(self, tree: Configfs) -> None:
        tree.write(self.path, self.controller)

    def undo(self, tree: Configfs) -> None:
        if tree.read(self.path):
            tree.write(self.path, "")


def apply(steps: Sequence[Step], tree: Configfs, *, before_undo: Callable[[], None] = lambda: None) -> None:
    """Does what is not done yet. StepFailed when one fails: then all of them are undone, those found done too, last one first."""
    for number, step in enumerate(steps):
        try:
            if not step.done(tree):
                log.debug("%s", step)
                step.do(tree)
        except OSError as error:
            log.warning("cannot %s: %s", step, error.strerror)
            before_undo()
            undo(steps[: number + 1], tree)
            raise StepFailed(f"cannot {step}: {error.strerror}", busy=error.errno == errno.EBUSY) from None


def undo(steps: Sequence[Step], tree: Configfs) -> bool:
    """Undoes what is done, last one first, and goes on where one fails; whether none did."""
    clean = True
    for step in reversed(steps):
        try:
            step.undo(tree)
        except OSError as error:
            log.warning("cannot undo '%s': %s", step, error.strerror)
            clean = False
    return clean
