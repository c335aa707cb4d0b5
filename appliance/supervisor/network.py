"""The network, for whoever asks over the control socket, and what is wrong with it, as repairs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import psutil

from appliance.config.errors import ConfigError
from appliance.network.direct_mode import INTERFACE
from appliance.network.errors import Busy as ChangeWaits
from appliance.network.errors import NetworkError
from appliance.network.firewall.explain import Explained, explained
from appliance.network.hardware import PANEL
from appliance.network.keeper import Keeper, Troubles, View
from appliance.network.kernel import mtu_of
from appliance.network.profiles import Device
from appliance.system_bus import BusError
from appliance.wire.messages import (
    FirewallLook,
    FirewallState,
    Message,
    NetworkApply,
    NetworkBack,
    NetworkCancel,
    NetworkConfirm,
    NetworkDiff,
    NetworkLook,
    NetworkPast,
    NetworkPlan,
    NetworkPort,
    NetworkRevision,
    NetworkRevisions,
    NetworkRevisionShown,
    NetworkRevisionText,
    NetworkState,
    PortState,
    UsbLink,
    UsbState,
)

from .errors import NetworkRefused, ReloadRefused
from .logins import Session
from .repairs import Kind, Repairs

#: What is asked here, and nowhere else.
NETWORK_MESSAGES = (
    NetworkLook,
    NetworkDiff,
    NetworkApply,
    NetworkConfirm,
    NetworkCancel,
    NetworkBack,
    NetworkPast,
    NetworkRevisionText,
    FirewallLook,
)

#: NMDeviceState: from "unmanaged" to "failed".
_UNMANAGED, _PREPARE, _ACTIVATED, _DEACTIVATING = 10, 40, 100, 110

_USB_STATES = {
    UsbState.CONNECTED: PortState.UP,
    UsbState.UNPLUGGED: PortState.NO_LINK,
    UsbState.WAITING: PortState.MISSING,
    UsbState.FROZEN: PortState.DOWN,
    UsbState.FAILED: PortState.DOWN,
}


class NetworkDesk:
    """Answers for the network. Without a keeper, the appliance is a guest on somebody's machine and leaves its network alone."""

    def __init__(
        self, keeper: Keeper | None, *, mode: Callable[[], str], usb: Callable[[], UsbLink | None]
    ) -> None:
        self._keeper, self._mode, self._usb = keeper, mode, usb

    async def answer(self, session: Session, message: Message) -> str | Message:
        """Does what one of NETWORK_MESSAGES asks. RequestFailed when it does not."""
        if not isinstance(message, NetworkLook | FirewallLook):
            session.require_admin()
        try:
            return await self._answer(session, message)
        except ConfigError as error:
            raise ReloadRefused(str(error)) from None
        except (NetworkError, BusError) as error:
            raise NetworkRefused(str(error), busy=isinstance(error, ChangeWaits)) from None

    async def _answer(self, session: Session, message: Message) -> str | Message:
        keeper = self._keeper
        if isinstance(message, NetworkLook):
            return await self._look(message.request_id)
        if keeper is None:
            raise NetworkRefused(GUEST)
        by = session.name
        match message:
            case NetworkDiff(request_id=request_id, text=text):
                lines, warnings = await keeper.difference(text)
                return NetworkPlan(request_id=request_id, lines=lines, warnings=warnings)
            case NetworkApply(text=text, confirm_s=confirm_s, why=why):
                return await keeper.apply(text, confirm_s=confirm_s, by=by, why=why)
            case NetworkConfirm():
                return await keeper.confirm()
            case NetworkCancel():
                return await keeper.cancel()
            case NetworkBack(steps=steps, confirm_s=confirm_s):
                return await keeper.back(steps, confirm_s=confirm_s, by=by)
            case NetworkPast(request_id=request_id):
                return NetworkRevisions(
                    request_id=request_id,
                    revisions=[
                        NetworkRevision(number=each.number, at=each.at, by=each.by, why=each.why)
                        for each in keeper.past()
                    ],
                )
            case NetworkRevisionText(request_id=request_id, steps=steps):
                return NetworkRevisionShown(request_id=request_id, text=keeper.text(steps))
            case FirewallLook(request_id=request_id):
                firewall, counters = await keeper.counters()
                lines = [_line(each) for each in explained(firewall, counters)]
                return FirewallState(request_id=request_id, enabled=bool(lines), lines=lines)
            case _:
                raise TypeError(f"{type(message).__name__} is no question about the network")

    async def _look(self, request_id: str) -> NetworkState:
        usb = list(_usb_port(self._usb()))
        if self._keeper is None:
            return NetworkState(
                request_id=request_id,
                managed=False,
                why=GUEST,
                mode=self._mode(),
                ports=[*usb, *_kernel_ports()],
            )
        try:
            view = await self._keeper.look()
        except (NetworkError, BusError) as error:
            return NetworkState(
                request_id=request_id,
                managed=False,
                why=str(error),
                mode=self._mode(),
                ports=[*usb, *_kernel_ports()],
            )
        return NetworkState(
            request_id=request_id,
            managed=view.revision is not None,
            why=""
            if view.revision
            else "nothing was applied yet; 'coral-reef net apply' applies network.yaml",
            mode=self._mode(),
            ports=[*_ports(view), *usb],
            confirm_within_s=view.confirm_within_s,
            revision=view.revision.number if view.revision else 0,
            differs=view.differs,
            drift=view.troubles.drift,
            firewall=view.firewall,
        )


GUEST = "this appliance runs beside others on a machine that is not its own, whose network it leaves alone"


def tell_repairs(repairs: Repairs, troubles: Troubles) -> None:
    """What is wrong with the network becomes repairs, what is over closes them."""
    for kind, what in (
        (Kind.NETWORK_MANAGER_MISSING, troubles.missing_manager),
        (Kind.NETWORK_NOT_APPLIED, troubles.not_applied),
        (Kind.NETWORK_UNFINISHED, troubles.unfinished),
        (Kind.FIREWALL_OFF, troubles.firewall_off),
        (Kind.NETWORK_DRIFT, "; ".join(line.strip() for line in troubles.drift)),
    ):
        repairs.when(kind, "network", what[:4096])
    repairs.only(Kind.PORT_GUESSED, [(role, f"{role}: {why}") for role, why in troubles.guessed.items()])
    repairs.only(Kind.PORT_MISSING, [(role, f"{role}: {why}") for role, why in troubles.missing.items()])


def _line(rule: Explained) -> str:
    counted = f"{rule.counter.packets} packets, {rule.counter.size_bytes} bytes"
    which = f" {rule.which}" if rule.which else ""
    end = f"not now: {rule.idle}" if rule.idle else counted
    return f"{rule.direction:<7} {rule.verdict:<6}{which}: {rule.words} ({end})"


def _ports(view: View) -> Iterator[NetworkPort]:
    """Ours in the order of the panel, then what nobody has given a role."""
    counters = psutil.net_io_counters(pernic=True)
    roles = {**{device.name: str(role) for role, device in view.binding.devices.items()}, **view.roles}
    devices = [each for each in view.current.devices if each.kind != "loopback" and each.name != INTERFACE]
    for device in sorted(devices, key=lambda each: _place(roles.get(each.name, ""), each.name)):
        role = roles.get(device.name, "")
        traffic = counters.get(device.name)
        yield NetworkPort(
            role=role,
            interface=device.name,
            kind=device.kind,
            state=_state(device) if role else PortState.FOREIGN,
            mac=device.mac,
            driver=device.driver,
            speed_mbps=device.speed_mbps if device.carrier else 0,
            mtu=device.mtu,
            addresses=list(device.addresses),
            gateways=list(device.gateways),
            name_servers=list(device.name_servers),
            received_bytes=traffic.bytes_recv if traffic else 0,
            sent_bytes=traffic.bytes_sent if traffic else 0,
            detail=view.troubles.later.get(role, "") or view.troubles.guessed.get(role, ""),
        )
    for missing, why in view.binding.missing.items():
        yield NetworkPort(role=str(missing), interface="", kind="", state=PortState.MISSING, detail=why)


def _place(role: str, interface: str) -> tuple[int, str]:
    """Along the rear panel, with what stands on a port behind it; what has no role comes last."""
    port = role.partition(".")[0]
    places = [str(each) for each in PANEL]
    return places.index(port) if port in places else len(places), role or interface


def _state(device: Device) -> PortState:
    if not device.managed or device.state <= _UNMANAGED:
        return PortState.FOREIGN
    if device.state == _ACTIVATED:
        return PortState.UP
    if _PREPARE <= device.state < _ACTIVATED or device.state == _DEACTIVATING:
        return PortState.CONNECTING
    return PortState.DOWN if device.carrier or device.kind == "wifi" else PortState.NO_LINK


def _usb_port(link: UsbLink | None) -> Iterator[NetworkPort]:
    if link is not None:
        yield NetworkPort(
            role="usb",
            interface=link.interface,
            kind="usb",
            state=_USB_STATES[link.state],
            addresses=[link.address] if link.address else [],
            detail=link.trouble,
        )


def _kernel_ports() -> Iterator[NetworkPort]:
    """What the kernel has, where there is no NetworkManager to ask."""
    addresses, counters = psutil.net_if_addrs(), psutil.net_io_counters(pernic=True)
    for name in sorted(addresses):
        if name in ("lo", INTERFACE):
            continue
        traffic = counters.get(name)
        found = []
        for each in addresses.get(name, ()):
            with contextlib.suppress(ValueError):
                found.append(with_prefix(each.address, each.netmask))
        yield NetworkPort(
            role="",
            interface=name,
            kind="",
            state=PortState.FOREIGN,
            mtu=mtu_of(name),
            addresses=found,
            received_bytes=traffic.bytes_recv if traffic else 0,
            sent_bytes=traffic.bytes_sent if traffic else 0,
        )


def with_prefix(address: str, netmask: str | None) -> str:
    """`10.0.0.1/24` of an address and its mask. ValueError for what is no IP address."""
    found = ip_address(address.partition("%")[0])
    bits = int(ip_address(netmask)).bit_count() if netmask else found.max_prefixlen
    return f"{found}/{bits}"
