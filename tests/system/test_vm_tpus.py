"""Edge TPUs on USB as the kernel and udev tell of them: `fake_coral` on the ports of the virtual machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.devices.table import FLAPS
from tests.edgetpu.stand_in import Fake, StandIn, add_text_models
from tests.waiting import wait_for

from . import fake_coral
from .installed import SUPERVISOR, VM_MARKS
from .report import Figures
from .vm import VirtualMachine

pytestmark = VM_MARKS

MANY = 32

FIFO = "/run/fake-coral.orders"

#: What the stand-in for libedgetpu reads and writes there.
CONTROL, LOG = "/run/fake-edgetpu/tpus", "/run/coral-reef/workers/fake-edgetpu.log"

#: The port 1-1 is the third slot, which is for memory, where embeddings belong.
CONFIGURATION = """
[inference]
invoke_limit_s = 60.0
[[devices.trays]]
name = "top"
slots = ["usb-2-1", "usb-3-1", "usb-1-1"]
"""

#: How long an invoke takes, so that the cable can be pulled meanwhile, and how many follow on one another.
INVOKE_MS, INVOKES = 5000, 8

#: For what an event of udev's brings about, for a machine that is not slow.
TOLD_WITHIN_S = 15.0

#: What libedgetpu does when it opens one: sends a firmware to the boot loader, over usbfs (USBDEVFS_CONTROL).
SEND_FIRMWARE = """
import ctypes, fcntl, os, struct, sys
def control(request_type, request, value, data):
    buffer = ctypes.create_string_buffer(data, len(data) or 1)
    order = struct.pack("@BBHHHIP", request_type, request, value, 0, len(data), 5000, ctypes.addressof(buffer))
    fcntl.ioctl(node, 0xC0185500, order)
    return buffer.raw
node = os.open(sys.argv[1], os.O_RDWR)
for block in range(4):
    control(0x21, 1, block, bytes(2048))
    assert control(0xA1, 3, 0, bytes(6))[4] == 5
control(0x21, 1, 4, b"")
control(0xA1, 3, 0, bytes(6))
"""


#: Comes and goes $2 times, each time until the kernel has noticed.
FLAP = """
for _ in $(seq "$2"); do
    echo unplug 0 >"$1"
    while [ -e /sys/bus/usb/devices/1-1 ]; do sleep 0.1; done
    echo plug 0 >"$1"
    until [ -e /sys/bus/usb/devices/1-1/idVendor ]; do sleep 0.1; done
done
"""


class Tower:
    """The machine with ports, and what its API says of them."""

    def __init__(self, machine: VirtualMachine) -> None:
        self.machine = machine
        key = machine.out("cat", "/var/lib/coral-reef/admin.key")
        self._client = httpx.Client(
            base_url=machine.url, headers={"Authorization": f"Bearer {key}"}, timeout=120, trust_env=False
        )

    def add_ports(self, count: int) -> None:
        """Each a controller of its own: port N is `usb-N-1`, from 1 on."""
        # The appliance would take the first of them for its own USB link.
        self.machine.run("systemctl", "mask", "--runtime", "--now", "coral-reef-gadget.service")
        self.machine.run("modprobe", "dummy_hcd", f"num={count}", "is_super_speed=0")
        self.machine.put("/run/fake_coral.py", Path(fake_coral.__file__).read_bytes())
        program = ["/usr/bin/python3", "/run/fake_coral.py", str(count), FIFO]
        self.machine.run("systemd-run", "--quiet", "--unit=fake-coral", *program)
        self.machine.run(
            "sh", "-c", f"until [ -p {FIFO} ]; do sleep 0.2; systemctl -q is-active fake-coral; done"
        )

    def order(self, *orders: str) -> None:
        """`plug N`, `unplug N`, `plug N running`."""
        self.machine.run("sh", "-c", f"cat >{FIFO}", given="".join(f"{each}\n" for each in orders).encode())

    def tpus(self) -> dict[str, dict[str, Any]]:
        response = self._client.get("/api/v1/system/tpus")
        assert response.status_code == 200, response.text
        return {tpu["id"]: tpu for tpu in response.json()["tpus"]}

    def embed(self, texts: list[str]) -> dict[str, Any]:
        response = self._client.post("/api/v1/embeddings", json={"input": texts})
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def repairs(self) -> list[str]:
        return [repair["id"] for repair in self._client.get("/api/v1/system/repairs").json()["repairs"]]

    def until(self, what: str, state: str, count: int) -> dict[str, dict[str, Any]]:
        """All there are, when as many as `count` are in this state."""

        def found() -> dict[str, dict[str, Any]] | None:
            tpus = self.tpus()
            return tpus if [tpu["state"] for tpu in tpus.values()].count(state) == count else None

        try:
            return wait_for(what, found, within_s=TOLD_WITHIN_S * self.machine.slowness, look_s=0.5)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.tpus()}") from None

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def tower(vm: VirtualMachine) -> Iterator[Tower]:
    found = Tower(vm)
    try:
        yield found
    finally:
        found.close()


def test_from_the_boot_loader_to_running_is_one_device(tower: Tower) -> None:
    tower.add_ports(1)
    tower.order("plug 0")
    before = tower.until("its boot loader is there", "boot_loader", 1)["usb-1-1"]
    node = tower.machine.out("stat", "--format=%U %G %a", before["node"])
    assert node == "root plugdev 660"
    tower.machine.run("/usr/bin/python3", "-c", SEND_FIRMWARE, before["node"])
    after = tower.until("it runs", "ready", 1)
    assert list(after) == ["usb-1-1"]
    assert after["usb-1-1"]["node"] != before["node"]
    tower.order("unplug 0")
    tower.until("it is gone", "gone", 1)


def test_a_tower_of_32(tower: Tower, figures: Figures) -> None:
    """All at once: each is in the table, each once."""
    tower.add_ports(MANY)
    began = time.monotonic()
    tower.order(*(f"plug {number}" for number in range(MANY)))
    found = tower.until(f"{MANY} are there", "boot_loader", MANY)
    figures.add(f"{MANY} TPUs plugged in at once: all in the table after", time.monotonic() - began, "s")
    assert set(found) == {f"usb-{bus}-1" for bus in range(1, MANY + 1)}
    tower.order(*(f"unplug {number}" for number in range(MANY)))
    tower.until("all are gone", "gone", MANY)


def test_one_that_comes_and_goes_is_quarantined(tower: Tower) -> None:
    tower.add_ports(2)
    tower.order("plug 0", "plug 1")
    tower.until("both are there", "boot_loader", 2)
    tower.machine.run("sh", "-c", FLAP, "flap", FIFO, str(FLAPS))
    found = tower.until("it is in quarantine", "quarantined", 1)
    assert found["usb-1-1"]["state"] == "quarantined"
    assert found["usb-2-1"]["state"] == "boot_loader"
    assert "tpu_quarantined:usb-1-1" in tower.repairs()
    tower.machine.run("coral-reef", "repair", "fix", "tpu_quarantined:usb-1-1")
    assert "tpu_quarantined:usb-1-1" not in tower.repairs()


def test_unplugged_during_an_invoke(tower: Tower, tmp_path: Path) -> None:
    """The one that was on it is answered all the same, by the CPU; nobody else notices."""
    port = Fake("usb-1-1", ms=INVOKE_MS)
    stand_in = StandIn(tmp_path)
    install_stand_in(tower.machine, stand_in, tmp_path / "models")

    def tell(*tpus: Fake) -> None:
        stand_in.tell(*tpus)
        tower.machine.put(CONTROL, stand_in.control.read_bytes())

    tell(port)
    tower.add_ports(1)
    tower.order("plug 0 running")
    tower.until("a worker has opened it", "leased", 1)

    def invokes() -> int:
        """How often it was told to work."""
        return int(tower.machine.run("grep", "-c", f"^invoke {port.path}$", LOG, check=False).stdout or 0)

    # Before it takes part, it puts the models into its memory, which are invokes, too.
    wait_for(
        "it takes part",
        lambda: port.id in tower.embed(["text"])["ran_on"],
        within_s=TOLD_WITHIN_S * tower.machine.slowness,
        look_s=1.0,
    )
    before = invokes()
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(tower.embed, [f"text {number}" for number in range(INVOKES)])
        wait_for(
            "it works",
            lambda: asked.done() or invokes() > before,
            within_s=TOLD_WITHIN_S * tower.machine.slowness,
            look_s=0.2,
        )
        assert not asked.done(), asked.result()["ran_on"]
        tell(Fake("usb-1-1", "absent"))
        tower.order("unplug 0")
        answer = asked.result()
    assert len(answer["data"]) == INVOKES
    assert "cpu" in answer["ran_on"]
    tower.until("it is gone", "gone", 1)
    assert tower.embed(["text"])["ran_on"] == ["cpu"]


def install_stand_in(machine: VirtualMachine, stand_in: StandIn, models: Path) -> None:
    """The library with models that were compiled for it."""
    machine.put("/usr/lib/x86_64-linux-gnu/libedgetpu.so.1", Path(stand_in.library).read_bytes())
    machine.run("ldconfig")
    models.mkdir()
    add_text_models(models)
    for file in models.iterdir():
        machine.put(f"/var/lib/coral-reef/models/{file.name}", file.read_bytes())
    machine.put("/etc/coral-reef/appliance.toml", CONFIGURATION)
    machine.put(
        f"/run/systemd/system/{SUPERVISOR}.d/stand-in.conf",
        f"[Service]\nEnvironment=FAKE_EDGETPU={CONTROL} FAKE_EDGETPU_LOG={LOG}\n",
    )
    machine.put(CONTROL, stand_in.control.read_bytes())
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", SUPERVISOR)
    machine.wait_until_healthy()
