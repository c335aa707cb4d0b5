"""TPUs that are plugged in and out: umockdev's imitation of the kernel's /sys and of udev's events, which the real libudev reads.

The library must be preloaded, so two processes play: one that plugs (`Testbed`) and one that watches (`Watched`, or whatever else
is started with `Testbed.environment`).
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from appliance.config.appliance import Devices
from appliance.wire.messages import Tpu, TpuState
from tests.waiting import wait_for

PRELOAD = "libumockdev-preload.so.0"

#: umockdev sends events through UNIX sockets and ends at the first that does not fit: some ten, where netlink has room for
#: thousands. In a network namespace of its own, a process may have more; only root can have one.
ROOM = ("unshare", "--net", "sh", "-c", 'echo 4096 >/proc/sys/net/unix/max_dgram_qlen && exec "$@"', "sh")

#: How long an answer may take; the machine may be busy.
ANSWER_S = 60.0


class Testbed:
    """What is plugged in. Paths that it returns are those below /sys."""

    __test__ = False

    def __init__(self) -> None:
        self._numbers = itertools.count(2)
        self._ports: dict[str, str] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.devices.umockdev_process"],
            env={**os.environ, "LD_PRELOAD": PRELOAD},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.root = Path(self._process.stdout.readline().strip())

    def __enter__(self) -> Testbed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._process.communicate(timeout=ANSWER_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        shutil.rmtree(self.root, ignore_errors=True)  # who still watches may write into it
        assert value is not None or self._process.returncode == 0, self._end

    @property
    def _end(self) -> str:
        return f"umockdev has ended with {self._process.poll()}: see what it said on standard error"

    @property
    def variables(self) -> dict[str, str]:
        """What makes a process see the testbed instead of this machine."""
        return {"LD_PRELOAD": PRELOAD, "UMOCKDEV_DIR": str(self.root)}

    @property
    def environment(self) -> dict[str, str]:
        """Ours, with `variables`."""
        return {**os.environ, **self.variables}

    def orders(self, *orders: list[Any]) -> float:
        """Carries them out, in this order, without a pause. Returns when the first one began, on CLOCK_MONOTONIC."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(orders) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._process.wait(ANSWER_S)
        assert answer, self._end
        return float(answer)

    def usb(
        self,
        port: str,
        *,
        running: bool = False,
        mode: int = 0o660,
        attributes: Mapping[str, str | None] | None = None,
    ) -> list[Any]:
        """The order that plugs a TPU into a port, in its boot loader or running. `attributes` of None are missing."""
        number = next(self._numbers) % 128
        node = f"/dev/bus/usb/001/{number:03}"
        vendor, product = ("18d1", "9302") if running else ("1a6e", "089a")
        path = self.root / node.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        path.chmod(mode)
        found = {
            "idVendor": vendor,
            "idProduct": product,
            "busnum": "1",
            "devnum": str(number),
            "speed": "5000",
            **(attributes or {}),
        }
        self._ports[port] = f"/sys/devices/{port}"
        properties = {
            "DEVTYPE": "usb_device",
            "DEVNAME": node,
            "PRODUCT": f"{vendor}/{product.lstrip('0')}/100",
            "ID_VENDOR_ID": vendor,
            "ID_MODEL_ID": product,
        }
        known = {name: value for name, value in found.items() if value is not None}
        return ["add", "usb", port, None, known, properties]

    def unusb(self, port: str) -> list[Any]:
        """The order that pulls a TPU out."""
        return ["remove", self._ports[port]]

    def dance(self, port: str) -> list[list[Any]]:
        """What an open does to one in its boot loader: it goes, and comes back as itself."""
        return [self.unusb(port), self.usb(port, running=True)]

    def apex(self, number: int, address: str, **attributes: str) -> list[list[Any]]:
        """The orders that bring a PCIe TPU with its driver."""
        node = self.root / f"dev/apex_{number}"
        node.parent.mkdir(parents=True, exist_ok=True)
        node.touch()
        node.chmod(0o660)
        return [
            ["add", "pci", address, None, {"vendor": "0x1ac1", "device": "0x089a"}, {"PCI_ID": "1AC1:089A"}],
            [
                "add",
                "apex",
                f"apex_{number}",
                f"/sys/devices/{address}",
                {"pci_address": address, **attributes},
                {"DEVNAME": f"/dev/apex_{number}"},
            ],
        ]


@dataclass
class Watched:
    """A process with a `DeviceWatch` in it. `worker_uid`: for whom permissions are looked at; None: for itself."""

    testbed: Testbed
    settings: Devices = field(default_factory=Devices)
    worker_uid: int | None = None
    #: When each TPU was last told to have changed, on CLOCK_MONOTONIC, and what to.
    told: dict[str, tuple[float, Tpu]] = field(default_factory=dict)
    #: Every state that each TPU was told to be in.
    states: dict[str, list[TpuState]] = field(default_factory=dict)
    lost: list[tuple[str, str, str]] = field(default_factory=list)

    def __enter__(self) -> Watched:
        self._answers: queue.Queue[Any] = queue.Queue()
        arguments = [msgspec.json.encode(self.settings).decode()]
        if self.worker_uid is not None:
            arguments.append(str(self.worker_uid))
        command = [sys.executable, "-m", "tests.devices.watch_process", *arguments]
        self._process = subprocess.Popen(
            [*ROOM, *command] if os.geteuid() == 0 else command,
            env=self.testbed.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        status = self._process.wait(ANSWER_S)
        self._reader.join(ANSWER_S)
        self._process.stdout.close()
        assert status == 0 or value is not None

    def do(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the watch; returns what it returned, or an error's code and text."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([method, *arguments]).encode() + b"\n")
        self._process.stdin.flush()
        return self._answers.get(timeout=ANSWER_S)

    def all(self) -> dict[str, Tpu]:
        """The table now."""
        return {tpu.id: tpu for tpu in msgspec.convert(self.do("all"), list[Tpu])}

    def until(
        self, what: str, condition: Callable[[dict[str, Tpu]], bool], *, within_s: float = 30.0
    ) -> dict[str, Tpu]:
        """The first table for which that is so."""

        found: dict[str, Tpu] = {}

        def look() -> bool:
            nonlocal found
            found = self.all()
            return condition(found)

        wait_for(what, look, within_s=within_s)
        return found

    def until_state(self, tpu_id: str, state: TpuState, *, within_s: float = 30.0) -> Tpu:
        """The TPU when it is in that state."""

        def there(table: dict[str, Tpu]) -> bool:
            return tpu_id in table and table[tpu_id].state is state

        return self.until(f"{tpu_id} is {state}", there, within_s=within_s)[tpu_id]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            match msgspec.json.decode(line):
                case {"changed": changed, "at": at}:
                    for tpu in msgspec.convert(changed, list[Tpu]):
                        self.told[tpu.id] = at, tpu
                        self.states.setdefault(tpu.id, []).append(tpu.state)
                case {"lost": [tpu_id, worker, reason]}:
                    self.lost.append((tpu_id, worker, reason))
                case {"answer": answer}:
                    self._answers.put(answer)
