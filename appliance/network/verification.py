"""Whether a profile is what was wanted, and its device has what it says: by NetworkManager's word and by the kernel's."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface

from .kernel import addresses_of, mtu_of
from .plan import differences
from .profiles import Device, Found, Profile


def wrong_with(profile: Profile, found: Found | None, device: Device | None, *, active: bool) -> list[str]:
    """What is not as it should be: where, what was expected, what was found. `active`: it should be, on `device`."""
    if found is None:
        return [f"{profile.role}: NetworkManager has lost its profile"]
    if found.settings != profile.settings:
        changes = ", ".join(differences(profile.settings, found.settings))
        return [f"{profile.role}: NetworkManager understood something else ({changes})"]
    if profile.brings_other_secrets_than(found):
        return [f"{profile.role}: NetworkManager did not keep the password"]
    return _wrong_on_device(profile, found, device) if active else []


def _wrong_on_device(profile: Profile, found: Found, device: Device | None) -> list[str]:
    role = profile.role
    if device is None:
        return [f"{role}: expected the device {profile.interface}, found none"]
    if device.profile != found.uuid or not found.activated:
        return [f"{role}: it is not active on {profile.interface}"]
    wrong = []
    in_kernel = addresses_of(profile.interface)
    told = {_normal(each) for each in device.addresses}
    gateways = {ip_address(each) for each in device.gateways}
    for family in ("ipv4", "ipv6"):
        wanted = profile.settings.get(family, {})
        for text in _texts(wanted.get("address-data")):
            if not (_normal(text) in in_kernel and _normal(text) in told):
                has = ", ".join(sorted(in_kernel)) or "none"
                wrong.append(f"{role}: expected the address {text} on {profile.interface}, found {has}")
        gateway = str(wanted.get("gateway", ""))
        if gateway and not wanted.get("route-table") and ip_address(gateway) not in gateways:
            has = ", ".join(device.gateways) or "none"
            wrong.append(f"{role}: expected the gateway {gateway}, found {has}")
    if (mtu := mtu_of_profile(profile)) and (has_mtu := mtu_of(profile.interface)) != mtu:
        wrong.append(f"{role}: expected an MTU of {mtu} on {profile.interface}, found {has_mtu}")
    return wrong


def mtu_of_profile(profile: Profile) -> int:
    """0: as the device likes."""
    sections = (profile.settings.get(name, {}) for name in ("802-3-ethernet", "802-11-wireless"))
    return next((mtu for section in sections if isinstance(mtu := section.get("mtu"), int)), 0)


def _texts(value: object) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else []


def _normal(text: str) -> str:
    return str(ip_interface(text))
