"""The adapter, with a real NetworkManager."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from appliance.config.network import Role
from appliance.network.desired import wanted
from appliance.network.errors import (
    ActivationFailed,
    Failure,
    NetworkManagerFailed,
    NetworkManagerMissing,
)
from appliance.network.hardware import Binding
from appliance.network.networkmanager import NetworkManager
from appliance.network.plan import described, plan
from appliance.network.profiles import Current, Desired, Device, Found, Profile
from appliance.system_bus import Bus
from tests.waiting import ask_until

from .changes import ethernet
from .networks import network_of
from .real_nm import World, real_nm

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
]

EXAMPLES = Path(__file__).parents[2] / "appliance" / "config" / "examples"


@pytest.fixture
def world() -> Iterator[World]:
    with real_nm() as found:
        yield found


@pytest.fixture
async def manager(world: World) -> AsyncIterator[NetworkManager]:
    async with Bus(timeout_s=30) as bus:
        yield NetworkManager(bus)


async def _added(manager: NetworkManager, profile: Profile, old: str = "") -> str:
    new = str(uuid.uuid4())
    await manager.add(profile, new, old)
    return new


async def _found(manager: NetworkManager, each: str) -> Found:
    return next(found for found in (await manager.current()).profiles if found.uuid == each)


async def test_what_there_is(world: World, manager: NetworkManager) -> None:
    assert await manager.running()
    assert (await manager.version()).startswith("1.")
    first = await _added(
        manager, ethernet(0, "10.70.0.2/24", gateway="10.70.0.1", mtu=1400, ipv6="fd00::2/64")
    )
    found = await _found(manager, first)
    assert (found.role, found.name, found.saved, found.device) == ("primary", "Coral-Reef primary", False, "")
    await manager.activate(first, "reef0")
    await manager.save(first)
    found = await _found(manager, first)
    assert (found.saved, found.device, found.activated) == (True, "reef0", True)
    device = (await manager.current()).device("reef0")
    assert device is not None
    assert (device.kind, device.driver, device.carrier, device.mtu, device.profile) == (
        "veth",
        "veth",
        True,
        1400,
        first,
    )
    assert {"10.70.0.2/24", "fd00::2/64"} <= set(device.addresses)
    assert device.gateways == ("10.70.0.1",)
    assert device.mac in world.ip("link", "show", "reef0")
    assert await manager.deactivate(first)
    assert not await manager.deactivate(first)
    assert (await _found(manager, first)).device == ""
    assert await manager.delete(first)
    assert not await manager.delete(first)
    assert world.profiles() == {}


CONFIGURATIONS = {
    **{path.stem: path.read_text("utf-8") for path in sorted(EXAMPLES.glob("*.yaml"))},
    "bond": """
        interfaces:
          primary: {type: ethernet, dhcp: true, mtu: 9000, bond: {mode: active-backup, ports: [secondary]}}
          secondary: {type: ethernet}
        """,
    "everything": """
        interfaces:
          primary:
            type: ethernet
            ip: 10.0.0.5/24
            addresses: ["fd00:1::5/64"]
            gateway: 10.0.0.1
            dns: [10.0.0.1, "fd00::1"]
            search: [a.example]
            mtu: 9000
            routes: [{to: 10.9.0.0/16, via: 10.0.0.2, metric: 5}, {to: "fd09::/48", via: "fd00:1::1"}]
          secondary: {type: ethernet, ip: 10.0.0.6/24}
        """,
    **{
        name: f"interfaces: {{wifi: {{type: wifi, enabled: true, wifi: {{ssid: Home, {wifi}}}}}}}"
        for name, wifi in {
            "wpa2": "security: wpa2, password: '12345678', hidden: true",
            "wpa3": "security: wpa3, password: '12345678'",
            "access point": "mode: access-point, password: '12345678', band: 2.4ghz, channel: 6",
            "peap": "security: enterprise-peap, identity: me, password: secret, ca_cert: /etc/ca.pem",
            "tls": "security: enterprise-tls, identity: me, password: secret, ca_cert: /etc/ca.pem, "
            "client_cert: /etc/cert.pem, private_key: /etc/key.pem",
        }.items()
    },
}

DEVICES = {
    role: Device(f"reef{number}", "wifi" if role is Role.WIFI else "ethernet", carrier=True)
    for number, role in enumerate((Role.PRIMARY, Role.SECONDARY, Role.MANAGEMENT, Role.CLUSTER, Role.WIFI))
}


async def test_it_understands_what_we_mean(world: World, manager: NetworkManager) -> None:
    """Each profile that network.yaml can mean comes back as it went, also from the disk: else a plan would never be done."""
    meant: dict[str, Profile] = {}
    for text in CONFIGURATIONS.values():
        profiles, _ = wanted(network_of(text), Binding(DEVICES, {}, {}))
        for profile in profiles:
            meant[await _added(manager, profile)] = profile
    assert len(meant) > 20
    for each in meant:
        await manager.save(each)
    for restarted in (False, True):
        if restarted:
            world.kill_nm()
            world.start_nm()
            await ask_until("it is back", manager.running)
        there = {found.uuid: found for found in (await manager.current()).profiles}
        for each, profile in meant.items():
            assert there[each].settings == profile.settings, profile.role
            assert there[each].role == profile.role
            assert there[each].saved


WIFI = {
    "connection": {"type": "802-11-wireless", "id": "Coral-Reef wifi", "interface-name": "wlan9"},
    "802-11-wireless": {"ssid": "Home"},
    "802-11-wireless-security": {"key-mgmt": "wpa-psk"},
    "ipv4": {"method": "auto"},
    "ipv6": {"method": "disabled"},
}


def _wifi(ssid: str = "Home", password: str = "") -> Profile:
    settings = {**WIFI, "802-11-wireless": {"ssid": ssid}}
    secrets = {"802-11-wireless-security": {"psk": password}} if password else {}
    return Profile("wifi", "wlan9", settings, (), secrets)  # type: ignore[arg-type]


async def test_a_successor_keeps_the_secret(world: World, manager: NetworkManager) -> None:
    first = await _added(manager, _wifi(password="correct horse"))
    await manager.save(first)
    assert "psk=correct horse" in "".join(world.profiles().values())
    second = await _added(manager, _wifi(), first)
    third = await _added(manager, _wifi(password="another one"), second)
    fourth = await _added(manager, _wifi("Neighbour"), third)
    files = {each: next(text for text in world.profiles().values() if f"uuid={each}" in text)
             for each in (second, third, fourth)}  # fmt: skip
    assert "psk=correct horse" in files[second]
    assert "psk=another one" in files[third]
    assert "psk" not in files[fourth].replace("key-mgmt=wpa-psk", ""), "a network gets another's password"
    assert "horse" not in repr(await manager.current())
    profile, found = _wifi(password="correct horse"), await _found(manager, second)
    assert not profile.brings_other_secrets_than(found)
    assert profile.brings_other_secrets_than(await _found(manager, third))
    await manager.save(second)
    current = Current(((await _found(manager, second)),))
    assert plan(Desired((profile,)), current) == plan(Desired((_wifi(),)), current) == ()
    changed = Desired((_wifi(password="a new one"),))
    assert described(plan(changed, current), current) == [
        "change wifi on wlan9 (when the hardware is there)",
        "    another password",
    ]


async def test_a_copy_is_its_owners(world: World, manager: NetworkManager) -> None:
    first = await _added(manager, ethernet(0, "10.70.0.2/24"))
    await manager.save(first)
    world.nmcli("connection", "clone", first, "a copy")
    roles = {found.name: found.role for found in (await manager.current()).profiles}
    assert roles["Coral-Reef primary"] == "primary"
    assert roles["a copy"] == ""


async def test_why_it_does_not_become_active(world: World, manager: NetworkManager) -> None:
    first = await _added(manager, ethernet(0))
    with pytest.raises(ActivationFailed, match="nobody answers to DHCP") as caught:
        await manager.activate(first, "reef0", within_s=2)
    assert caught.value.failure is Failure.NO_ADDRESS
    world.nmcli("connection", "modify", first, "ipv4.dhcp-timeout", "2", "ipv4.may-fail", "no")
    with pytest.raises(
        ActivationFailed, match="Coral-Reef primary did not become active on reef0: no address"
    ) as caught:
        await manager.activate(first, "reef0")
    assert caught.value.failure is Failure.NO_ADDRESS

    with pytest.raises(ActivationFailed) as caught:
        await manager.activate(await _added(manager, ethernet(7, "10.77.0.2/24", role="cluster")), "reef7")
    assert caught.value.failure is Failure.NO_DEVICE

    await manager.deactivate(first)
    running = asyncio.create_task(manager.activate(first, "reef0"))
    await ask_until("it has begun", lambda: _begun(manager, first))
    await manager.delete(first)
    with pytest.raises(ActivationFailed, match="somebody deleted the profile"):
        await running


async def _begun(manager: NetworkManager, each: str) -> bool:
    return bool((await _found(manager, each)).device)


async def test_the_cable_is_out(world: World, manager: NetworkManager) -> None:
    first = await _added(manager, ethernet(0))
    world.pull(0)
    await ask_until("it has noticed", lambda: _without_carrier(manager))
    with pytest.raises(ActivationFailed) as caught:
        await manager.activate(first, "reef0", within_s=2)
    assert caught.value.failure is Failure.NO_CARRIER


async def _without_carrier(manager: NetworkManager) -> bool:
    device = (await manager.current()).device("reef0")
    return device is not None and not device.carrier


async def test_a_checkpoint(world: World, manager: NetworkManager) -> None:
    first = await _added(manager, ethernet(0, "10.70.0.2/24"))
    second = await _added(manager, ethernet(0, "10.70.0.3/24"))
    await manager.activate(first, "reef0")
    path = await manager.checkpoint(["reef0", "nothing"], 60)
    (checkpoint,) = await manager.checkpoints()
    assert (checkpoint.path, checkpoint.interfaces) == (path, frozenset({"reef0"}))
    with pytest.raises(NetworkManagerFailed, match="CheckpointCreate"):
        await manager.checkpoint(["reef0"], 60)
    await manager.activate(second, "reef0")
    assert await manager.extend(path, 30)
    assert await manager.roll_back(path)
    await ask_until("the first is active again", lambda: manager.follow_running(first))
    assert (await _found(manager, first)).activated
    assert not await manager.extend(path, 30)
    assert not await manager.roll_back(path)
    assert not await manager.destroy(path)
    assert not await manager.follow_running(second)
    assert await manager.checkpoint(["nothing"], 60) == ""


async def test_it_dies_and_comes_back(world: World, manager: NetworkManager) -> None:
    first = await _added(manager, ethernet(0))
    running = asyncio.create_task(manager.activate(first, "reef0"))
    await ask_until("it has begun", lambda: _begun(manager, first))
    world.kill_nm()
    with pytest.raises(NetworkManagerMissing, match="NetworkManager is not there"):
        await running
    assert not await manager.running()
    with pytest.raises(NetworkManagerMissing):
        await manager.current()
    world.start_nm()
    await ask_until("it is back", manager.running)
    assert not await manager.settled(within_s=0.5), "nobody answers to DHCP"
    assert (await _found(manager, first)).role == "primary"


async def test_it_does_not_answer(world: World) -> None:
    async with Bus(timeout_s=0.5) as bus:
        manager = NetworkManager(bus)
        world.signal_nm(signal.SIGSTOP)
        with pytest.raises(NetworkManagerFailed, match=r"did not answer in 0\.5 s") as caught:
            await manager.current()
        assert not isinstance(caught.value, NetworkManagerMissing)
        assert not await manager.running()
        world.signal_nm(signal.SIGCONT)
        await ask_until("it is back", manager.running)
