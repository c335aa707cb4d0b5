"""A machine with a kernel of its own: QEMU, with the processor emulated where there is no KVM. `image` says what it boots.

Nothing of it outlives the test run, however that ends: QEMU dies with us, and disk, console and sockets are files without a name
that are handed to it open. Its disk is a layer over the image that keeps what was written when QEMU is killed, except what the
machine has not flushed: a true loss of power for the machine. The API is reached by `url`.

Not real in it: the processor's speed (without KVM, Python runs some eight times slower), and what USB devices dummy_hcd plays.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx

from tests.waiting import wait_for

from .booted import free_port
from .guest import COMMAND_TIMEOUT_S, LOGIN, Guest, become
from .image import API_ADDRESS, API_MAC, API_PORT, Image, built
from .qemu_talk import Agent, Gone, Monitor

MEMORY_MIB = 2048
PROCESSORS = 2

#: How many times slower than this machine's.
EMULATED, VIRTUALIZED = 10.0, 2.0

#: Until its agent answers and systemd has nothing left to start, for a machine that is not slow.
BOOT_TIMEOUT_S = 60.0

#: From there until the appliance would answer a chat.
HEALTHY_WITHIN_S = 60.0

#: Until it has ended all that it runs.
OFF_TIMEOUT_S = 60.0

#: Chooses `tcg` although there is KVM.
CHOICE = "CORAL_REEF_VM"

#: Without `tsc=reliable` the kernel takes its time from an emulated HPET, and Python asks for it without end.
KERNEL_COMMAND_LINE = (
    "console=ttyS0 root=/dev/vda rw loglevel=4 systemd.show_status=true "
    "mitigations=off nowatchdog tsc=reliable clocksource=tsc"
)


def kvm() -> bool:
    """Whether this machine's processor may be lent to it: the module without hardware, kvm_pvm, runs only kernels made for it."""
    hardware = any(Path("/sys/module", name).exists() for name in ("kvm_intel", "kvm_amd"))
    return hardware and os.access("/dev/kvm", os.R_OK | os.W_OK) and os.environ.get(CHOICE) != "tcg"


class VirtualMachine(Guest):
    """One that may be switched on and off again; its disk stays between. Process ids are its own."""

    def __init__(self, name: str, image: Image, log: IO[bytes]) -> None:
        self.name, self._image, self._log = name, image, log
        self.slowness = VIRTUALIZED if kvm() else EMULATED
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        # Files without a name. QEMU wants each open for exactly what it does with it.
        self._base, self._disk = _disks(image, log)
        self._console, self._console_written = _memory_file("console")
        self._acknowledged, self._acknowledged_written = _memory_file("acknowledged")

    # --- its power ----------------------------------------------------------------------------------------------

    def switch_on(self) -> None:
        """Returns when QEMU runs; `wait_until_booted` waits for the machine."""
        assert self._process is None, "it is on"
        monitor, its_monitor = socket.socketpair()
        agent, its_agent = socket.socketpair()
        files = [self._base, self._disk, self._console_written, self._acknowledged_written]
        command = [
            *("setpriv", "--pdeathsig=KILL", "nice", "-n", "5"),
            *_qemu(self._image, self.port),
            *_open_files(files),
            *("-chardev", "file,id=console,path=/dev/fdset/2,append=on", "-serial", "chardev:console"),
            *("-chardev", "file,id=acknowledged,path=/dev/fdset/3,append=on"),
            *("-device", "virtserialport,chardev=acknowledged,name=acknowledged"),
            *("-chardev", f"socket,id=agent,fd={its_agent.fileno()}"),
            *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
            *("-chardev", f"socket,id=monitor,fd={its_monitor.fileno()}"),
            *("-mon", "chardev=monitor,mode=control"),
        ]
        with its_monitor, its_agent:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[*files, its_monitor.fileno(), its_agent.fileno()],
            )
        self._sockets = (monitor, agent)
        self._monitor, self._agent = Monitor(monitor), Agent(agent)

    def wait_until_booted(self) -> None:
        """Until it has started all that it wants to start."""
        deadline = time.monotonic() + BOOT_TIMEOUT_S * self.slowness
        try:
            while not self._agent.synchronize(2.0):
                assert time.monotonic() < deadline, f"{self.name} does not answer"
            # One question that waits: many would take the time that it has for booting.
            self.run("systemctl", "is-system-running", "--wait", check=False, timeout_s=BOOT_TIMEOUT_S)
        except (AssertionError, TimeoutError) as error:
            raise AssertionError(f"{error}\n{self.console[-8000:]}") from None

    def reboot(self) -> None:
        """Asks it to, and returns when it has."""
        self.run("systemctl", "reboot", "--no-block")
        self._monitor.wait_for_event("RESET", within_s=OFF_TIMEOUT_S * self.slowness)
        self.wait_until_booted()

    def switch_off(self) -> None:
        """Asks it to, and returns when it has."""
        with contextlib.suppress(Gone):  # it may be quicker than its agent's answer
            self.run("systemctl", "poweroff", "--no-block")
        assert self._process is not None
        status = self._process.wait(OFF_TIMEOUT_S * self.slowness)
        self._ended()
        assert status == 0, f"QEMU ended with {status}"

    def cut_power(self) -> None:
        """At once, whatever it does at this moment."""
        assert self._process is not None
        self._process.kill()
        self._ended()

    def _ended(self) -> None:
        assert self._process is not None
        self._process.wait()
        self._process = None
        for each in self._sockets:
            each.close()

    def close(self) -> None:
        """Without a trace."""
        if self._process is not None:
            self.cut_power()
        for descriptor in (
            self._base,
            self._disk,
            self._console,
            self._console_written,
            self._acknowledged,
            self._acknowledged_written,
        ):
            os.close(descriptor)

    @property
    def on(self) -> bool:
        return self._process is not None and self._process.poll() is None

    # --- its state ----------------------------------------------------------------------------------------------

    def save(self, name: str) -> None:
        """Keeps the whole machine as it is at this moment."""
        self._monitor.type(f"savevm {name}")

    def revert(self, name: str) -> None:
        """Makes it what it was; it may be off.

        In a QEMU of its own: one that goes on never lets the processor's clock go back (cpu_get_ticks), and to the machine all
        the time since then would pass at once, watchdogs included.
        """
        if self._process is not None:
            self.cut_power()
        self.switch_on()
        self._monitor.type(f"loadvm {name}")
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while not self._agent.synchronize(1.0):
            assert time.monotonic() < deadline, f"{self.name} does not answer after it was made what it was"

    def wait_until_healthy(self, *, within_s: float = HEALTHY_WITHIN_S) -> None:
        """Until a chat would be answered; it may take `slowness` times as long."""

        def healthy() -> bool:
            assert self.on, "QEMU has ended"
            try:
                return httpx.get(f"{self.url}/health", timeout=60, trust_env=False).status_code == 200
            except httpx.TransportError:
                return False

        wait_for("the appliance is healthy", healthy, within_s=within_s * self.slowness, look_s=1.0)

    # --- in it --------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where its API is, on this machine."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def console(self) -> str:
        """All that was written on its console, ttyS0."""
        return _content(self._console)

    @property
    def acknowledged(self) -> str:
        """All that was written to its /dev/virtio-ports/acknowledged: it is here as soon as it was written."""
        return _content(self._acknowledged)

    def run(
        self,
        *words: str | Path,
        user: str = "",
        check: bool = True,
        timeout_s: float = COMMAND_TIMEOUT_S,
        given: bytes = b"",
    ) -> subprocess.CompletedProcess[str]:
        """As `Guest.run`; `given` is its standard input. It may take `slowness` times as long."""
        command = ["/usr/bin/env", "-i", *LOGIN, *become(user), *map(str, words)]
        status, said, complained = self._agent.run(command, given=given, timeout_s=timeout_s * self.slowness)
        done = subprocess.CompletedProcess(
            command, status, said.decode("utf-8", "replace"), complained.decode("utf-8", "replace")
        )
        assert not check or status == 0, f"{words} ended with {status}:\n{done.stdout}{done.stderr}"
        return done

    def put(self, path: str | Path, content: bytes | str, *, mode: int = 0o644) -> None:
        """Writes a file in it."""
        given = content if isinstance(content, bytes) else content.encode()
        script = 'mkdir -p "${1%/*}" && cat >"$1" && chmod "$2" "$1"'
        self.run("sh", "-c", script, "put", path, f"{mode:o}", given=given)

    def last_words(self, lines: int) -> str:
        """The end of its journal, or why there is none."""
        try:
            return self.journal(lines) if self.on else "it is off"
        except (AssertionError, TimeoutError) as error:
            return f"its journal cannot be read: {error}"

    def processes(self) -> dict[int, str]:
        lines = (
            line.split(maxsplit=2) for line in self.out("ps", "-eww", "-o", "pid=,stat=,args=").splitlines()
        )
        return {int(pid): line for pid, state, line in lines if state[0] not in "ZX"}


@contextmanager
def virtual_machine(name: str, image: Image, log: IO[bytes]) -> Iterator[VirtualMachine]:
    """One that has booted; gone with the context."""
    machine = VirtualMachine(name, image, log)
    RUNNING.append(machine)
    try:
        machine.switch_on()
        machine.wait_until_booted()
        yield machine
    finally:
        RUNNING.remove(machine)
        machine.close()


#: Those that there are now, for journal and console in a failed test's report.
RUNNING: list[VirtualMachine] = []

#: What the machine has flushed is in the file; this machine itself does not lose power.
_CACHE = {"direct": False, "no-flush": True}

_READ_ONLY = {"read-only": True}


def _memory_file(name: str) -> tuple[int, int]:
    """A file without a name: to read it, and to append to it."""
    file = os.memfd_create(name)
    return file, os.open(f"/proc/self/fd/{file}", os.O_WRONLY | os.O_APPEND)


def _content(file: int) -> str:
    return os.pread(file, os.fstat(file).st_size, 0).decode("utf-8", "replace")


def _json(driver: str, name: str, **more: object) -> str:
    return json.dumps({"driver": driver, "node-name": name, **more})


def _disks(image: Image, log: IO[bytes] | None) -> tuple[int, int]:
    """The image, open for reading, and an empty layer over it, open for both, that has no name."""
    base = os.open(image.disk, os.O_RDONLY)
    with tempfile.TemporaryFile(dir="/tmp") as file:
        layer = os.dup(file.fileno())
    size = str(os.fstat(base).st_size)
    make = ["qemu-img", "create", "-q", "-f", "qcow2", f"/proc/self/fd/{layer}", size]
    subprocess.run(make, pass_fds=[layer], stdout=log, stderr=log, check=True)
    return base, layer


def _open_files(descriptors: Sequence[int]) -> list[str]:
    """Hands them to QEMU as /dev/fdset/0 and so on."""
    sets = [f"fd={descriptor},set={number}" for number, descriptor in enumerate(descriptors)]
    return [word for each in sets for word in ("-add-fd", each)]


def _qemu(image: Image, port: int) -> list[str]:
    """A computer without a console, its disk from the files 0 and 1, its API at `port` of this machine."""
    accelerator = ["kvm", "-cpu", "host"] if kvm() else ["tcg,thread=multi,tb-size=256", "-cpu", "max"]
    forward = f"hostfwd=tcp:127.0.0.1:{port}-{API_ADDRESS}:{API_PORT}"
    return [
        *("qemu-system-x86_64", "-machine", "q35", "-accel", *accelerator, "-nodefaults", "-no-user-config"),
        *("-smp", str(PROCESSORS), "-m", str(MEMORY_MIB), "-display", "none"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", KERNEL_COMMAND_LINE),
        *("-blockdev", _json("file", "base-file", filename="/dev/fdset/0", locking="off", **_READ_ONLY)),
        *("-blockdev", _json("raw", "base", file="base-file", **_READ_ONLY)),
        *("-blockdev", _json("file", "layer-file", filename="/dev/fdset/1", locking="off", cache=_CACHE)),
        *("-blockdev", _json("qcow2", "disk", file="layer-file", backing="base", cache=_CACHE)),
        *("-device", "virtio-blk-pci,drive=disk"),
        *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
        *("-netdev", f"user,id=api,restrict=on,{forward}"),
        *("-device", f"virtio-net-pci,netdev=api,mac={API_MAC}"),
    ]


def main() -> None:
    """`make vm`: boots one for a person, its console in this terminal; the environment's PORT is where its API is."""
    port = int(os.environ.get("PORT") or 8080)
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        sys.exit(
            f"coral-reef: 127.0.0.1:{port}: {os.strerror(error.errno or 0)}; try make vm PORT={port + 1}"
        )
    found = built()
    base, layer = _disks(found, None)
    console = [
        "-chardev",
        "stdio,id=console,mux=on,signal=off",
        "-serial",
        "chardev:console",
        "-mon",
        "console",
    ]
    print(
        "It boots: log in as root, without a password. Ctrl-A X switches it off and forgets all that was written.\n"
        f"Its API: http://127.0.0.1:{port}; the key: cat /var/lib/coral-reef/admin.key",
        flush=True,
    )
    command = ["setpriv", "--pdeathsig=KILL", *_qemu(found, port), *_open_files([base, layer]), *console]
    sys.exit(subprocess.run(command, pass_fds=[base, layer], check=False).returncode)


if __name__ == "__main__":
    main()
