"""What the adapter asks of NetworkManager, asked by the supervisor's user where authorisation is as it ships."""

from __future__ import annotations

import json

from tests.waiting import wait_for

from .installed import MARKS
from .nspawn import Machine

pytestmark = MARKS

MANAGED = """
[main]
no-auto-default=*
[device-all]
match-device=*
managed=1
[keyfile]
unmanaged-devices=interface-name:sw*;interface-name:host*
"""

#: Everything that a change of the network asks for; prints what was done, and why the next one was not.
CHANGE = """
import asyncio, json, uuid
from appliance.network.errors import NetworkError
from appliance.network.networkmanager import NetworkManager
from appliance.network.profiles import Profile
from appliance.system_bus import Bus

def wired(address):
    connection = {"type": "802-3-ethernet", "id": "rights", "interface-name": "reef0"}
    ipv4 = {"method": "manual", "address-data": [address]}
    return Profile("primary", "reef0", {"connection": connection, "ipv4": ipv4, "ipv6": {"method": "disabled"}})

def wireless(**secrets):
    settings = {
        "connection": {"type": "802-11-wireless", "id": "radio", "interface-name": "wlan9"},
        "802-11-wireless": {"ssid": "Home"},
        "802-11-wireless-security": {"key-mgmt": "wpa-psk"},
        "ipv4": {"method": "auto"},
    }
    return Profile("wifi", "wlan9", settings, (), {"802-11-wireless-security": secrets} if secrets else {})

async def steps(manager):
    await manager.current()
    yield "current"
    old, new, radio, other = (str(uuid.uuid4()) for _ in range(4))
    await manager.add(wired("10.70.0.2/24"), old)
    yield "add"
    await manager.activate(old, "reef0")
    yield "activate"
    checkpoint = await manager.checkpoint(["reef0"], 60)
    yield "checkpoint"
    await manager.add(wired("10.70.0.3/24"), new, old)
    await manager.activate(new, "reef0")
    assert await manager.extend(checkpoint, 50)
    yield "extend"
    assert await manager.roll_back(checkpoint)
    yield "roll back"
    checkpoint = await manager.checkpoint(["reef0"], 60)
    await manager.activate(new, "reef0")
    assert await manager.destroy(checkpoint)
    yield "destroy"
    await manager.save(new)
    yield "save"
    await manager.add(wireless(psk="correct horse"), radio)
    await manager.add(wireless(), other, radio)
    yield "secrets"
    assert await manager.deactivate(new)
    yield "deactivate"
    for each in (old, new, radio):
        assert await manager.delete(each)
    yield "delete"

async def main():
    done, why = [], ""
    async with Bus() as bus:
        try:
            async for each in steps(NetworkManager(bus)):
                done.append(each)
        except NetworkError as error:
            why = str(error)
    print(json.dumps([done, why]))

asyncio.run(main())
"""


def test_the_supervisor_may_change_the_network_and_nobody_else(machine: Machine) -> None:
    (machine.root / "etc/NetworkManager/conf.d/test.conf").write_text(MANAGED, "utf-8")
    machine.run("ip", "link", "add", "reef0", "type", "veth", "peer", "name", "sw0")
    machine.run("ip", "link", "set", "sw0", "up")
    machine.run("systemctl", "start", "NetworkManager.service")
    wait_for(
        "the port is managed",
        lambda: "reef0:disconnected" in machine.out("nmcli", "-t", "-f", "DEVICE,STATE", "device"),
    )
    done, why = json.loads(machine.python(CHANGE, user="coral-reef"))
    assert why == ""
    assert done == [
        "current", "add", "activate", "checkpoint", "extend", "roll back", "destroy", "save", "secrets", "deactivate", "delete",
    ]  # fmt: skip
    # The successor of the one with the password has it.
    files = machine.out("sh", "-c", "cat /run/NetworkManager/system-connections/*")
    assert "psk=correct horse" in files
    # Nobody else hears a password, or makes a profile.
    for done_before, refused in (([], "GetSecrets"), (["current"], "AddConnection2")):
        done, why = json.loads(machine.python(CHANGE, user="coral-worker"))
        assert done == done_before
        assert f"NetworkManager does not let us do it ({refused}: " in why
        machine.run("nmcli", "connection", "delete", "radio", check=False)
