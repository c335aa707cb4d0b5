"""What the network interfaces of this machine carry, from the kernel's counters: now, and the most of today."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.wire.messages import InterfaceTraffic, Traffic

#: More than a tower has, VLANs and containers included; what is beyond is not looked at.
INTERFACES_LIMIT = 256

#: How often the counters are read.
PERIOD_S = 1.0

#: Readings that are nearer to one another tell no rate.
_LEAST_S = 0.01

#: ARPHRD_LOOPBACK of linux/if_arp.h.
_LOOPBACK = 772


@dataclass(frozen=True)
class Reading:
    """The counters of an interface, in bytes since it came up. `port`: what it carries counts in the sum, for it is carried by no
    other interface."""

    received: int
    sent: int
    port: bool


def read_interfaces(folder: Path) -> dict[str, Reading]:
    """Every interface below /sys/class/net but the loopback, by name.

    Ports are those that are hardware; where there are none, as in a container, those that stand on no other. What disappears
    while it is read is left out.
    """
    found: dict[str, Reading] = {}
    hardware: set[str] = set()
    try:
        names = sorted(each.name for each in folder.iterdir())[:INTERFACES_LIMIT]
    except OSError:
        return {}
    for name in names:
        with suppress(OSError, ValueError):
            interface = folder / name
            if _number(interface / "type") == _LOOPBACK:
                continue
            statistics = interface / "statistics"
            received, sent = _number(statistics / "rx_bytes"), _number(statistics / "tx_bytes")
            if (interface / "device").exists():
                hardware.add(name)
            stacked = any(each.name.startswith("lower_") for each in interface.iterdir())
            found[name] = Reading(received, sent, port=not stacked)
    if hardware:
        return {name: Reading(each.received, each.sent, name in hardware) for name, each in found.items()}
    return found


def _number(path: Path) -> int:
    with path.open("rb") as file:
        number = int(file.read(32))
    if number < 0:
        raise ValueError(f"{path}: {number}")
    return number


@dataclass
class _Rates:
    rate_in: float = 0.0
    rate_out: float = 0.0
    peak_in: float = 0.0
    peak_out: float = 0.0


class Interfaces:
    """Rates from one reading to the next, and the highest of the day. Each call of `take` is a reading."""

    def __init__(self) -> None:
        self._before: Mapping[str, Reading] = {}
        self._at = 0.0
        self._day = 0
        self._rates: dict[str, _Rates] = {}
        self._sum = _Rates()

    def take(self, readings: Mapping[str, Reading], now: float, day: int) -> None:
        """Takes the counters as they are `now`, in seconds of any clock that does not jump, on this local day."""
        passed_s = now - self._at
        if self._before and passed_s < _LEAST_S:
            return
        if day != self._day:
            self._day = day
            for rates in (self._sum, *self._rates.values()):
                rates.peak_in = rates.peak_out = 0.0
        self._rates = {name: self._rates.get(name, _Rates()) for name in readings}
        total_in = total_out = 0.0
        for name, reading in readings.items():
            before = self._before.get(name)
            carried_in = carried_out = 0
            # Of one that is new we do not know since when; of one that was made anew, the counters start again.
            if before is not None and reading.received >= before.received and reading.sent >= before.sent:
                carried_in, carried_out = reading.received - before.received, reading.sent - before.sent
            if self._before:
                _note(self._rates[name], carried_in / passed_s, carried_out / passed_s)
                if reading.port:
                    total_in, total_out = total_in + carried_in / passed_s, total_out + carried_out / passed_s
        if self._before:
            _note(self._sum, total_in, total_out)
        self._before, self._at = readings, now

    def traffic(self, request_id: str) -> Traffic:
        """The answer to whoever asks."""
        each = [
            _traffic(name, reading.received, reading.sent, self._rates[name], port=reading.port)
            for name, reading in self._before.items()
        ]
        received = sum(reading.received for reading in self._before.values() if reading.port)
        sent = sum(reading.sent for reading in self._before.values() if reading.port)
        return Traffic(
            request_id=request_id,
            total=_traffic("", received, sent, self._sum, port=True),
            interfaces=each,
        )


def _note(rates: _Rates, rate_in: float, rate_out: float) -> None:
    rates.rate_in, rates.rate_out = rate_in, rate_out
    rates.peak_in, rates.peak_out = max(rates.peak_in, rate_in), max(rates.peak_out, rate_out)


def _traffic(name: str, received: int, sent: int, rates: _Rates, *, port: bool) -> InterfaceTraffic:
    return InterfaceTraffic(
        name=name,
        port=port,
        bytes_in=received,
        bytes_out=sent,
        in_bytes_per_s=round(rates.rate_in),
        out_bytes_per_s=round(rates.rate_out),
        peak_in_bytes_per_s=round(rates.peak_in),
        peak_out_bytes_per_s=round(rates.peak_out),
    )
