"""Why a profile did not become active, in words. The numbers are NetworkManager's: NMDeviceStateReason and others."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ActivationFailed, Failure

ACTIVATING, ACTIVATED, DEACTIVATING, DEACTIVATED = 1, 2, 3, 4

#: NMDeviceState.
DEVICE_DISCONNECTED, DEVICE_PREPARE, IP_CONFIG, SECONDARIES, DEVICE_DEACTIVATING = 30, 40, 70, 90, 110

PROFILE_DELETED = 38
_NO_SECRETS, _CARRIER, _SSID_NOT_FOUND = 7, 40, 53

_REASONS: dict[int, tuple[Failure, str]] = {
    4: (Failure.OTHER, "the device could not be configured"),
    5: (Failure.NO_ADDRESS, "no address could be had: nobody answers to DHCP, or the router says nothing"),
    6: (Failure.NO_ADDRESS, "the address could not be renewed: nobody answers to DHCP any more"),
    _NO_SECRETS: (Failure.WRONG_PASSWORD, "the network did not accept the password, or there is none"),
    8: (Failure.OTHER, "the Wi-Fi network ended the connection"),
    9: (Failure.OTHER, "wpa_supplicant does not take these Wi-Fi settings"),
    10: (Failure.OTHER, "wpa_supplicant failed, or is not installed"),
    11: (Failure.OTHER, "the Wi-Fi network did not answer in time"),
    15: (Failure.NO_ADDRESS, "the DHCP client could not be started"),
    16: (Failure.NO_ADDRESS, "the DHCP client failed"),
    17: (Failure.NO_ADDRESS, "nobody answers to DHCP"),
    18: (Failure.OTHER, "sharing could not be started (is dnsmasq installed?)"),
    19: (Failure.OTHER, "sharing failed"),
    35: (Failure.NO_DEVICE, "the device's firmware is missing"),
    36: (Failure.NO_DEVICE, "the device was removed"),
    37: (Failure.OTHER, "NetworkManager's networking is switched off"),
    PROFILE_DELETED: (Failure.OTHER, "somebody deleted the profile"),
    39: (Failure.OTHER, "somebody disconnected it"),
    _CARRIER: (Failure.NO_CARRIER, "the cable came out, or the other end is off"),
    50: (Failure.OTHER, "what it stands on did not become active"),
    _SSID_NOT_FOUND: (Failure.NOT_FOUND, "the Wi-Fi network is not in reach"),
    60: (Failure.OTHER, "somebody activated another profile there"),
    61: (Failure.OTHER, "the device below it changed"),
    62: (Failure.OTHER, "the device below it is not NetworkManager's any more"),
    64: (Failure.OTHER, "somebody else has this address"),
    65: (Failure.OTHER, "this device cannot get its address in this way"),
}

#: The same of an ActiveConnection (NMActiveConnectionStateReason), where no device had a word to say.
_CONNECTION_REASONS: dict[int, tuple[Failure, str]] = {
    2: _REASONS[39],
    3: (Failure.OTHER, "the device was disconnected"),
    5: _REASONS[5],
    6: (Failure.OTHER, "it took too long"),
    9: _REASONS[_NO_SECRETS],
    11: _REASONS[PROFILE_DELETED],
    12: _REASONS[50],
    13: (Failure.NO_DEVICE, "the kernel does not make such a device"),
    14: _REASONS[36],
}


@dataclass(frozen=True)
class Ended:
    """How it ended: the reasons that the device and the connection gave (0: none), and what is known of a Wi-Fi network."""

    device_reason: int = 0
    connection_reason: int = 0
    #: With WPA3 a wrong password is told as a network that is not there: this one was in the last scan.
    seen_with_sae: bool = False


def failure(name: str, interface: str, ended: Ended) -> ActivationFailed:
    """For whoever tried to activate `name`."""
    if ended.device_reason == _SSID_NOT_FOUND and ended.seen_with_sae:
        kind, words = (
            Failure.WRONG_PASSWORD,
            "the network is there, and does not accept the password (WPA3 says no more)",
        )
    elif ended.device_reason in _REASONS:
        kind, words = _REASONS[ended.device_reason]
    elif ended.connection_reason in _CONNECTION_REASONS:
        kind, words = _CONNECTION_REASONS[ended.connection_reason]
    else:
        kind = Failure.OTHER
        words = f"for a reason of its own ({ended.device_reason}, {ended.connection_reason})"
    where = f" on {interface}" if interface else ""
    return ActivationFailed(f"{name} did not become active{where}: {words}", kind)
