"""The udev rules, applied by the real udevadm to devices that umockdev imitates."""

from __future__ import annotations

import grp
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace of one's own is root's"),
]

ROOT = Path(__file__).parents[2]

#: Everything as on a machine with the appliance installed, in a mount namespace that ends with it: our rules, and our groups.
SCRIPT = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/udev/rules.d
cp udev/65-coral-reef-*.rules /run/udev/rules.d/
cp /etc/group /run/group
printf 'apex:x:64901:\\ncoral-reef:x:64902:\\ncoral-console:x:64903:\\n' >>/run/group
mount --bind /run/group /etc/group
exec "$@"
"""

#: Plugs everything in and prints, for each device, what udevadm says and what then stands in its attributes.
PLUG = """
import json, pathlib, subprocess
from tests.devices.hotplug import Testbed
with Testbed() as testbed:
    power = {"power/control": "--"}  # no longer than what is written: a file, unlike sysfs, keeps the rest
    eeprom = ["add", "i2c", "0-0050", None, {"name": "24c2048"}, {"DRIVER": "at24"}]
    trips = {f"trip_point{number}_temp": str(85000 + 5000 * number) for number in range(3)}
    testbed.orders(
        testbed.usb("1-1", attributes=power),
        testbed.usb("1-2", running=True, attributes=power),
        testbed.usb("1-3", attributes={"idVendor": "18d1", "idProduct": "4ee7"} | power),
        *testbed.apex(0, "0000:03:00.0", **trips),
        *testbed.apex(1, "0000:04:00.0"),
        eeprom,
        ["add", "nvmem", "0-00500", "/sys/devices/0-0050", {"type": "EEPROM"}, {}],
        ["add", "tty", "ttyGS0", None, {"dev": "240:0"}, {"DEVNAME": "/dev/ttyGS0"}],
        ["add", "tty", "ttyS4", None, {"dev": "4:68"}, {"DEVNAME": "/dev/ttyS4"}],
    )
    driver = testbed.root / "sys/bus/i2c/drivers/at24"
    driver.mkdir(parents=True)
    (testbed.root / "sys/devices/0-0050/driver").symlink_to(driver)
    found = {}
    for name in ("1-1", "1-2", "1-3", "0000:03:00.0/apex_0", "0000:04:00.0/apex_1", "0-0050/0-00500", "ttyGS0", "ttyS4"):
        done = subprocess.run(
            ["udevadm", "test", "--action=add", f"/sys/devices/{name}"],
            env=testbed.environment, capture_output=True, text=True,
        )
        folder = testbed.root / "sys/devices" / name
        texts = {}
        for path in (*folder.glob("trip*"), *folder.glob("power/*")):
            texts[path.name] = path.read_text().strip()
        found[name.split("/")[-1]] = [done.returncode, done.stdout, done.stderr, texts]
    print(json.dumps(found))
"""


#: By device: udevadm's status, standard output and standard error, and the attributes afterwards.
Applied = dict[str, tuple[int, str, str, dict[str, str]]]


@pytest.fixture(scope="module")
def applied() -> Applied:
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", SCRIPT, "sh", sys.executable, "-c", PLUG],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name: tuple(values) for name, values in json.loads(done.stdout.splitlines()[-1]).items()}


def ours(log: str) -> list[str]:
    """What udevadm says about our rules, without the file's name."""
    return [
        line.partition(".rules:")[2]
        for line in log.splitlines()
        if "/65-coral-reef-" in line and "Reading rules" not in line
    ]


def group(name: str) -> str:
    return str(grp.getgrnam(name).gr_gid)


def test_udevadm_has_nothing_to_complain_of(applied: Applied) -> None:
    for status, _, log, _ in applied.values():
        assert status == 0
        for complaint in ("Invalid", "Unknown", "invalid", "unknown", "ignoring", "Failed to write"):
            assert not [line for line in ours(log) if complaint in line]


@pytest.mark.parametrize("device", ["1-1", "1-2"])
def test_both_usb_identities(device: str, applied: Applied) -> None:
    _, properties, log, attributes = applied[device]
    assert "SYSTEMD_WANTS=coral-reef-tpu.target" in properties.splitlines()
    assert "TAGS=:systemd:" in properties.splitlines()
    said = [line.partition(" ")[2] for line in ours(log)]
    assert f"GROUP {group('plugdev')}" in said
    assert "MODE 0660" in said
    assert attributes["control"] == "on"


def test_other_devices_are_left_alone(applied: Applied) -> None:
    _, properties, log, attributes = applied["1-3"]
    assert "SYSTEMD_WANTS" not in properties
    assert ours(log) == []
    assert attributes["control"] == "--"


def test_pcie_with_trip_points(applied: Applied) -> None:
    _, properties, log, attributes = applied["apex_0"]
    assert "SYSTEMD_WANTS=coral-reef-tpu.target" in properties.splitlines()
    said = [line.partition(" ")[2] for line in ours(log)]
    assert said[:2] == ["GROUP 64901", "MODE 0660"]
    # Lowered from the first on: the driver wants them in order at every moment.
    assert [line.split("'")[1].rpartition("/")[2] for line in said[2:]] == [
        f"trip_point{number}_temp" for number in range(3)
    ]
    assert attributes == {
        "trip_point0_temp": "80000",
        "trip_point1_temp": "85000",
        "trip_point2_temp": "90000",
    }


def test_pcie_with_an_old_driver(applied: Applied) -> None:
    _, properties, log, attributes = applied["apex_1"]
    assert "SYSTEMD_WANTS=coral-reef-tpu.target" in properties.splitlines()
    assert [line.partition(" ")[2] for line in ours(log)] == ["GROUP 64901", "MODE 0660"]
    assert attributes == {}


def test_the_memory_of_a_tray(applied: Applied) -> None:
    _, properties, _, _ = applied["0-00500"]
    run = [line for line in properties.splitlines() if line.startswith("run:")]
    path = "/sys/devices/0-0050/0-00500/nvmem"
    assert run == [f"run: '/bin/chgrp coral-reef {path}'", f"run: '/bin/chmod 0440 {path}'"]


def test_the_serial_gadget_gets_a_console(applied: Applied) -> None:
    _, properties, log, _ = applied["ttyGS0"]
    assert "SYSTEMD_WANTS=coral-reef-console@ttyGS0.service" in properties.splitlines()
    assert "TAGS=:systemd:" in properties.splitlines()
    assert [line.partition(" ")[2] for line in ours(log)] == ["GROUP 64903", "MODE 0660"]


def test_other_lines_do_not(applied: Applied) -> None:
    _, properties, log, _ = applied["ttyS4"]
    assert "SYSTEMD_WANTS" not in properties
    assert ours(log) == []
