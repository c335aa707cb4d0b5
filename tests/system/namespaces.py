"""Machines that are network namespaces, joined by virtual cables, gone at the end."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_NUMBERS = itertools.count()


class Node:
    """A namespace, with a loopback that is up."""

    def __init__(self, name: str, ends: ExitStack) -> None:
        self.name = f"reef{os.getpid()}-{next(_NUMBERS)}-{name}"
        self._ends = ends
        subprocess.run(["ip", "netns", "add", self.name], check=True, timeout=60)
        ends.callback(subprocess.run, ["ip", "netns", "delete", self.name], check=True, timeout=60)
        self.run("ip", "link", "set", "lo", "up")

    def run(self, *words: str, stdin: str = "") -> str:
        """Runs a program there to its end; CalledProcessError when it fails."""
        return subprocess.run(
            self.command(*words), check=True, timeout=120, input=stdin, stdout=subprocess.PIPE, text=True
        ).stdout

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """One that runs there until the end of all."""
        process = subprocess.Popen(self.command(*words))

        def end() -> None:
            process.kill()
            process.wait()

        self._ends.callback(end)
        return process

    def command(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *words]

    def address(self, interface: str, *addresses: str) -> None:
        """Switches an interface on, with these addresses; IPv6 ones are there at once."""
        self.run("ip", "link", "set", interface, "up")
        for each in addresses:
            nodad = ["nodad"] if ":" in each else []
            self.run("ip", "address", "add", each, "dev", interface, *nodad)


class Cabling:
    """Makes namespaces and the cables between them."""

    def __init__(self, ends: ExitStack) -> None:
        self._ends = ends

    def node(self, name: str) -> Node:
        return Node(name, self._ends)

    def cable(self, one: Node, its_end: str, other: Node, other_end: str) -> None:
        """An interface at either end, switched off."""
        pair = ["ip", "link", "add", its_end, "netns", one.name, "type", "veth"]
        subprocess.run([*pair, "peer", "name", other_end, "netns", other.name], check=True, timeout=60)


@contextmanager
def cabling() -> Iterator[Cabling]:
    """Namespaces that are deleted at the end, what runs in them ended."""
    with ExitStack() as ends:
        yield Cabling(ends)
