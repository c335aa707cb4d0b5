"""Direct mode's interface, done by ip(8) and nft(8).

Not by NetworkManager, whose way to serve a desktop ("shared") hands out a default route and masquerades; nor by
systemd-networkd, which does not run on a Debian with NetworkManager. Whoever makes the interface gives it its address: nobody
has to be agreed with.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable

import msgspec

from .direct_mode import INTERFACE, DirectMode, firewall, no_firewall
from .errors import CommandFailed

log = logging.getLogger(__name__)

#: What ip or nft may take; the machine may be busy.
COMMAND_TIMEOUT_S = 20.0

Run = Callable[..., str]


class _Address(msgspec.Struct):
    family: str = ""
    local: str = ""
    prefixlen: int = 0


class _Interface(msgspec.Struct):
    """Of what `ip -json address` says."""

    addr_info: list[_Address] = []
    flags: list[str] = []


def run_command(*words: str, stdin: str = "") -> str:
    """What a program prints. CommandFailed with what it complained of."""
    try:
        done = subprocess.run(
            words, input=stdin, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        raise CommandFailed(f"{words[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise CommandFailed(f"{words[0]} did not end within {COMMAND_TIMEOUT_S:g} s") from None
    if done.returncode != 0:
        complaint = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[0]
        raise CommandFailed(f"{' '.join(words)}: {complaint}")
    return done.stdout


class UsbInterface:
    """Raises CommandFailed. What is right already stays untouched."""

    def __init__(self, mode: DirectMode, run: Run = run_command) -> None:
        self.mode, self._run = mode, run

    def guard(self) -> None:
        """Puts the firewall up, before the interface: without it there is no link."""
        self._run("nft", "-f", "-", stdin=firewall(self.mode))

    def unguard(self) -> None:
        """Takes the firewall away, after the interface."""
        self._run("nft", "-f", "-", stdin=no_firewall())

    def up(self) -> None:
        """Firewall, address, link; then looks whether it is so."""
        self.guard()
        wanted = str(self.mode.address)
        found = self._look()
        for each in _ipv4(found):
            if each != wanted:
                self._run("ip", "address", "delete", each, "dev", INTERFACE)
        if wanted not in _ipv4(found):
            self._run("ip", "address", "add", wanted, "dev", INTERFACE)
        if "UP" not in found.flags:
            self._run("ip", "link", "set", INTERFACE, "up")
        now = self._look()
        if _ipv4(now) != [wanted] or "UP" not in now.flags:
            raise CommandFailed(
                f"{INTERFACE} has {', '.join(_ipv4(now)) or 'no address'}, expected {wanted}, up"
            )

    def announce(self) -> None:
        """Lets systemd-resolved speak mDNS on this link; on others it does not unless somebody has told it so. It remembers that
        while the interface lives, over its own restarts too."""
        self._run("resolvectl", "mdns", INTERFACE, "yes")

    def _look(self) -> _Interface:
        said = self._run("ip", "-json", "address", "show", "dev", INTERFACE)
        return parse_address(said)


def parse_address(said: str) -> _Interface:
    """What `ip -json address show dev NAME` says. CommandFailed when it is nothing that we understand."""
    try:
        found = msgspec.json.decode(said or "[]", type=list[_Interface])
    except msgspec.MsgspecError as error:
        raise CommandFailed(f"ip said something unexpected: {error}") from None
    if len(found) != 1:
        raise CommandFailed(f"ip spoke of {len(found)} interfaces, expected one")
    return found[0]


def _ipv4(found: _Interface) -> list[str]:
    return [f"{each.local}/{each.prefixlen}" for each in found.addr_info if each.family == "inet"]
