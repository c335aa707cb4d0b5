"""Network namespaces without any name: each is held open by a descriptor of this process and ends with it.

`setns` moves one thread; a socket stays where it was made. So sockets of every namespace live side by side in one test.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from appliance.network.usb_interface import run_command

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000


class Namespace:
    """A network of its own, as empty as the kernel makes it. `with` ends it, sockets permitting."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._descriptor = -1

    def __enter__(self) -> Namespace:
        made: list[int] = []

        def make() -> None:
            _checked(_libc.unshare(_CLONE_NEWNET))
            made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

        # A thread's namespace ends with the thread.
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        (self._descriptor,) = made
        self.run("ip", "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    @property
    def path(self) -> str:
        """By which ip(8) and nsenter(1) know it."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def run(self, *words: str, stdin: str = "") -> str:
        """What a program prints that runs in it. CommandFailed."""
        return run_command("nsenter", f"--net={self.path}", *words, stdin=stdin)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """A program that runs in it."""
        return subprocess.Popen(["nsenter", f"--net={self.path}", *words], stdout=subprocess.PIPE)

    def set(self, **values: int) -> None:
        """Values below /proc/sys/net; `__` stands for a slash."""
        for name, value in values.items():
            self.run("sh", "-c", f'echo {value} >"/proc/sys/net/{name.replace("__", "/")}"')

    @contextmanager
    def here(self) -> Iterator[None]:
        """This thread is in it."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _checked(_libc.setns(self._descriptor, _CLONE_NEWNET))
            yield
        finally:
            _checked(_libc.setns(home, _CLONE_NEWNET))
            os.close(home)

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket of it, not blocking."""
        with self.here():
            made = socket.socket(family, kind, protocol)
        made.setblocking(False)
        return made


def cable(one: Namespace, one_name: str, other: Namespace, other_name: str, mtu: int = 1500) -> None:
    """A pair of interfaces that are connected, both up."""
    # Both ends of a pair can be made at once, each in a namespace that a descriptor names; by way of one of them.
    peer = ["peer", "name", other_name, "netns", other.path]
    one.run("ip", "link", "add", one_name, "mtu", str(mtu), "type", "veth", *peer)
    one.run("ip", "link", "set", one_name, "up")
    other.run("ip", "link", "set", other_name, "up")


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
