"""Which device is which port."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.config.network import Match, Port, Role
from appliance.network.hardware import bind, fits
from appliance.network.profiles import Device

SFP = Device("enp1s0", "ethernet", "52:54:00:00:00:01", "ixgbe", "pci-0000:01:00.0", 10_000)
LEFT = Device("enp2s0", "ethernet", "52:54:00:00:00:02", "igb", "pci-0000:02:00.0", 1000)
RIGHT = Device("enp3s0", "ethernet", "52:54:00:00:00:03", "igb", "pci-0000:03:00.0", 1000)
RADIO = Device("wlan0", "wifi", "52:54:00:00:00:04", "ath12k", "pci-0000:04:00.0")
PANEL = (SFP, LEFT, RIGHT, RADIO)

ETHERNET = Port(type="ethernet")


def names(ports: dict[Role, Port], *devices: Device) -> dict[str, str]:
    return {str(role): device.name for role, device in bind(ports, devices).devices.items()}


def test_the_only_one_of_its_kind() -> None:
    found = bind({Role.PRIMARY: ETHERNET, Role.WIFI: Port(type="wifi")}, [RADIO, SFP])
    assert {role: device.name for role, device in found.devices.items()} == {
        Role.PRIMARY: "enp1s0",
        Role.WIFI: "wlan0",
    }
    assert not found.guessed
    assert not found.missing


def test_what_the_owner_says_goes_first() -> None:
    ports = {
        Role.PRIMARY: ETHERNET,
        Role.MANAGEMENT: Port(type="ethernet", match=Match(mac="52:54:00:00:00:01")),
    }
    assert names(ports, *PANEL) == {"management": "enp1s0", "primary": "enp2s0"}


def test_the_speed_decides() -> None:
    ports = {Role.SECONDARY: ETHERNET, Role.PRIMARY: Port(type="ethernet", speed="10gbps")}
    found = bind(ports, [RIGHT, LEFT, SFP])
    assert found.devices[Role.PRIMARY] is SFP
    assert Role.PRIMARY not in found.guessed


def test_a_guess_goes_along_the_panel_and_says_so() -> None:
    ports = {Role.MANAGEMENT: ETHERNET, Role.SECONDARY: ETHERNET}
    found = bind(ports, [RIGHT, LEFT])
    assert found.devices == {Role.SECONDARY: LEFT, Role.MANAGEMENT: RIGHT}
    assert found.guessed == {
        Role.SECONDARY: (
            "enp2s0 was taken for it; if that is the wrong one, say which: "
            "interfaces.secondary.match.mac (of enp2s0: 52:54:00:00:00:02)"
        ),
        Role.MANAGEMENT: (
            "enp3s0 was taken for it; if that is the wrong one, say which: "
            "interfaces.management.match.mac (of enp3s0: 52:54:00:00:00:03)"
        ),
    }


def test_what_is_not_there() -> None:
    ports = {
        Role.PRIMARY: Port(type="ethernet", match=Match(driver="igb")),
        Role.SECONDARY: Port(type="ethernet", match=Match(path="pci-9*")),
        Role.WIFI: Port(type="wifi"),
        Role.USB: Port(type="usb"),
    }
    found = bind(ports, [LEFT, RIGHT])
    assert not found.devices
    assert found.missing == {
        Role.PRIMARY: "several devices fit interfaces.primary.match: enp2s0, enp3s0",
        Role.SECONDARY: "no device fits interfaces.secondary.match",
        Role.WIFI: "there is no wifi device for it",
    }


def test_the_link_to_a_desktop_is_nobodys_port() -> None:
    assert bind({Role.PRIMARY: ETHERNET}, [Device("usb0", "ethernet")]).missing


def test_what_stands_on_a_port_has_its_mac_and_is_not_it() -> None:
    ports = {Role.PRIMARY: Port(type="ethernet", match=Match(mac=SFP.mac))}
    vlan, bond = Device("enp1s0.10", "vlan", SFP.mac), Device("bond-primary", "bond", SFP.mac)
    assert names(ports, SFP, vlan, bond) == {"primary": "enp1s0"}


def test_the_unique_match_goes_first() -> None:
    ports = {
        Role.PRIMARY: Port(type="ethernet", match=Match(driver="igb")),
        Role.MANAGEMENT: Port(type="ethernet", match=Match(mac=LEFT.mac)),
    }
    assert names(ports, *PANEL) == {"management": "enp2s0", "primary": "enp3s0"}


def test_a_port_stays_what_it_was() -> None:
    """Whatever else is plugged in, and whichever link is up."""
    ports = {Role.PRIMARY: ETHERNET, Role.MANAGEMENT: Port(type="ethernet", speed="10gbps")}
    remembered = {Role.PRIMARY: RIGHT.mac, Role.MANAGEMENT: LEFT.mac}
    stick = Device("enx0", "ethernet", "52:54:00:00:00:09", "r8152", "pci-0000:00:14.0-usb-0:1:1.0")
    found = bind(ports, [stick, SFP, LEFT, RIGHT], remembered)
    assert found.devices == {Role.PRIMARY: RIGHT, Role.MANAGEMENT: LEFT}
    assert not found.guessed
    assert bind({Role.PRIMARY: ETHERNET}, [LEFT], remembered).devices == {Role.PRIMARY: LEFT}


def test_fits() -> None:
    assert fits(
        Match(mac="52:54:00:00:00:0a", path="pci-*:01:00.0"),
        Device("x", "ethernet", "52:54:00:00:00:0A", "", "pci-0000:01:00.0"),
    )
    assert not fits(Match(interface="eth0", driver="igb"), Device("eth0", "ethernet", driver="e1000"))


@given(
    st.dictionaries(
        st.sampled_from(list(Role)),
        st.sampled_from(
            [ETHERNET, Port(type="wifi"), Port(type="usb"), Port(type="ethernet", match=Match(driver="igb"))]
        ),
    ),
    st.lists(st.sampled_from(PANEL), unique=True),
)
def test_a_device_has_one_role_and_each_role_an_answer(
    ports: dict[Role, Port], devices: list[Device]
) -> None:
    found = bind(ports, devices)
    assert len(found.devices) == len({device.name for device in found.devices.values()})
    ours = {role for role, port in ports.items() if port.type != "usb" and role is not Role.USB}
    assert ours == {*found.devices, *found.missing}
    assert set(found.guessed) <= set(found.devices)
    assert not set(found.devices) & set(found.missing)
    assert bind(ports, devices[::-1]) == found
