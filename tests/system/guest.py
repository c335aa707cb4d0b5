"""What a test does with a machine that has booted, whatever kind of machine it is."""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from pathlib import Path

#: The virtual environment of the installed appliance.
HOME = Path("/usr/lib/coral-reef")

COMMAND_TIMEOUT_S = 120.0

#: What somebody who has just logged in finds set.
LOGIN = (
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "LANG=C.UTF-8",
    "TERM=dumb",
    "SYSTEMD_PAGER=cat",
)


class Guest(ABC):
    """A running one."""

    #: What its reports are called by.
    name: str

    #: How many times slower it is than this machine: for deadlines.
    slowness: float = 1.0

    @abstractmethod
    def run(
        self, *words: str | Path, user: str = "", check: bool = True, timeout_s: float = COMMAND_TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end; AssertionError with all that it said when it fails and `check` is set."""

    @abstractmethod
    def processes(self) -> dict[int, str]:
        """Every living process in it with its command line."""

    def out(self, *words: str | Path, user: str = "", timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """What a command that succeeds prints."""
        return self.run(*words, user=user, timeout_s=timeout_s).stdout.strip()

    def python(self, code: str, *arguments: str, user: str = "", timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """What a program prints that the appliance's own Python runs in it."""
        return self.out(HOME / "bin/python", "-P", "-c", code, *arguments, user=user, timeout_s=timeout_s)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.out("systemctl", "show", "--value", f"--property={name}", unit)

    def journal(self, lines: int | str = "all", *options: str) -> str:
        """The end of its journal."""
        done = self.run("journalctl", "--no-pager", f"--lines={lines}", *options, check=False)
        return done.stdout + done.stderr

    def ours(self) -> dict[int, str]:
        """The appliance's processes."""
        return {pid: line for pid, line in self.processes().items() if line.startswith("coral-reef: ")}

    def pid(self, title: str) -> int:
        """The one process titled `coral-reef: TITLE...`."""
        (found,) = [pid for pid, line in self.ours().items() if line.startswith(f"coral-reef: {title}")]
        return found


def become(user: str) -> list[str]:
    """What runs the words after it as `user`; nothing for root."""
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []
