"""How soon the table of TPUs knows.

Events go from umockdev's testbed through the real libudev and the watch's event loop, in processes of their own, to the callback
that publishes them; wall time on one clock. A full look reads a tree of files like /sys, in this process.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from appliance.config.appliance import Devices, LayoutName
from appliance.devices.access import User
from appliance.devices.monitor import Monitor
from appliance.devices.watch import DeviceWatch
from appliance.wire.messages import Tpu
from tests.devices.fake_sysfs import FakeSysfs
from tests.devices.hotplug import Testbed, Watched
from tests.waiting import wait_for

from .report import row

TOWER = [f"1-{tray}.{hub}.{port}" for tray in range(1, 7) for hub in range(1, 5) for port in range(1, 5)]
EVENT_LIMIT_MS = 20.0
LOOK_LIMIT_MS = 200.0
EVENTS = 40


def event_ms(testbed: Testbed, watched: Watched, port: str, events: int) -> float:
    """Median from an event's sending to the callback, for a TPU whose link changes its speed."""
    taken = []
    for number in range(events):
        speed = (480, 5000)[number % 2]
        (testbed.root / f"sys/devices/{port}/speed").write_text(f"{speed}\n")
        sent = testbed.orders(["uevent", f"/sys/devices/{port}", "change"])
        told = wait_for("it is told", lambda speed=speed: _told(watched, port, speed))  # type: ignore[misc]
        taken.append((told - sent) * 1000)
    return statistics.median(taken)


def _told(watched: Watched, port: str, speed: int) -> float | None:
    at, tpu = watched.told.get(f"usb-{port}", (0.0, None))
    return at if tpu is not None and tpu.speed_mbps == speed else None


def storm_ms(rounds: int) -> float:
    """Median until the last of 96 that are plugged in without a pause is told, the plugging itself included."""
    taken = []
    for _ in range(rounds):
        with Testbed() as testbed, Watched(testbed, Devices(layout=LayoutName.L6X16)) as watched:
            sent = testbed.orders(*(testbed.usb(port) for port in TOWER))
            wait_for("all are told", lambda watched=watched: len(watched.told) == len(TOWER))  # type: ignore[misc]
            taken.append((max(at for at, _ in watched.told.values()) - sent) * 1000)
    return statistics.median(taken)


def look_ms(rounds: int) -> float:
    """Median of a first full look at 96 TPUs, with the callback."""
    taken = []
    with tempfile.TemporaryDirectory() as folder:
        fake = FakeSysfs(Path(folder))
        for number, port in enumerate(TOWER, 2):
            fake.usb(port, number)
        for _ in range(rounds):
            told: list[Tpu] = []
            watch = DeviceWatch(
                Devices(layout=LayoutName.L6X16),
                user=User("root", 0, frozenset()),
                changed=told.extend,
                root=fake.root,
                monitor=_none,
            )
            began = time.perf_counter()
            watch.look_at_all()
            taken.append((time.perf_counter() - began) * 1000)
            assert len(told) == len(TOWER)
    return statistics.median(taken)


def _none() -> Monitor:
    raise OSError("no events are needed")


def figures(rounds: int) -> Iterator[tuple[str, float, float]]:
    """Each figure's name with its milliseconds and their limit."""
    with Testbed() as testbed, Watched(testbed) as watched:
        testbed.orders(testbed.usb("1-1"))
        wait_for("it is there", lambda: "usb-1-1" in watched.told)
        yield "udev event to table, 1 TPU", event_ms(testbed, watched, "1-1", EVENTS * rounds), EVENT_LIMIT_MS
        testbed.orders(*(testbed.usb(port) for port in TOWER))
        wait_for("all are there", lambda: len(watched.told) == len(TOWER) + 1)
        title = f"udev event to table, {len(TOWER)} TPUs"
        yield title, event_ms(testbed, watched, TOWER[0], EVENTS * rounds), EVENT_LIMIT_MS
    yield "full look at 96 TPUs", look_ms(4 * rounds), LOOK_LIMIT_MS
    yield "96 TPUs plugged in at once, all told", storm_ms(rounds), 0.0


def measure(rounds: int) -> None:
    """Prints each figure beside its limit."""
    for title, ours, limit in figures(rounds):
        row(title, f"{ours:.1f} ms", f"{limit:,.0f} ms" if limit else "", ours / limit if limit else None)
