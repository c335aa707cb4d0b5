"""Counters of interfaces: from a folder like the kernel's, and from the kernel's own."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from appliance.telemetry.interfaces import INTERFACES_LIMIT, Interfaces, Reading, read_interfaces


def interface(
    folder: Path,
    name: str,
    received: int | str,
    sent: int | str,
    *,
    kind: str = "1",
    hardware: bool = False,
    lower: str = "",
) -> None:
    statistics = folder / name / "statistics"
    statistics.mkdir(parents=True)
    (folder / name / "type").write_text(f"{kind}\n")
    (statistics / "rx_bytes").write_text(f"{received}\n")
    (statistics / "tx_bytes").write_text(f"{sent}\n")
    if hardware:
        (folder / name / "device").mkdir()
    if lower:
        (folder / name / f"lower_{lower}").mkdir()


def test_a_machine(tmp_path: Path) -> None:
    interface(tmp_path, "lo", 1, 2, kind="772")
    interface(tmp_path, "eth0", 10, 20, hardware=True)
    interface(tmp_path, "eth0.20", 3, 4, lower="eth0")
    interface(tmp_path, "veth7", 5, 6)
    interface(tmp_path, "broken", "many", 1)
    interface(tmp_path, "negative", -1, 1)
    (tmp_path / "bonding_masters").write_text("")
    assert read_interfaces(tmp_path) == {
        "eth0": Reading(10, 20, port=True),
        "eth0.20": Reading(3, 4, port=False),
        "veth7": Reading(5, 6, port=False),
    }


def test_a_container(tmp_path: Path) -> None:
    interface(tmp_path, "eth0", 10, 20)
    interface(tmp_path, "br0", 10, 20, lower="eth0")
    assert {name: each.port for name, each in read_interfaces(tmp_path).items()} == {
        "eth0": True,
        "br0": False,
    }


def test_none_and_far_too_many(tmp_path: Path) -> None:
    assert read_interfaces(tmp_path / "none") == {}
    for number in range(INTERFACES_LIMIT + 3):
        interface(tmp_path, f"v{number:04}", 1, 1)
    assert len(read_interfaces(tmp_path)) == INTERFACES_LIMIT


def test_this_machine() -> None:
    found = read_interfaces(Path("/sys/class/net"))
    assert "lo" not in found
    assert all(each.received >= 0 and each.sent >= 0 for each in found.values())


def test_rates_peaks_and_a_new_day() -> None:
    interfaces = Interfaces()
    interfaces.take({"eth0": Reading(1000, 0, port=True)}, 10.0, 1)
    first = interfaces.traffic("r")
    assert (first.total.bytes_in, first.total.in_bytes_per_s) == (1000, 0)
    interfaces.take({"eth0": Reading(3000, 500, port=True), "v": Reading(9, 9, port=False)}, 11.0, 1)
    interfaces.take({"eth0": Reading(3100, 500, port=True), "v": Reading(5009, 9, port=False)}, 12.0, 1)
    found = interfaces.traffic("r")
    assert [each.name for each in found.interfaces] == ["eth0", "v"]
    eth0, other = found.interfaces
    assert (eth0.in_bytes_per_s, eth0.peak_in_bytes_per_s, eth0.peak_out_bytes_per_s) == (100, 2000, 500)
    assert (other.in_bytes_per_s, other.port) == (5000, False)
    assert (found.total.in_bytes_per_s, found.total.peak_in_bytes_per_s) == (100, 2000)
    assert (found.total.bytes_in, found.total.bytes_out) == (3100, 500)
    interfaces.take({"eth0": Reading(3101, 500, port=True)}, 13.0, 2)
    assert [each.peak_in_bytes_per_s for each in interfaces.traffic("r").interfaces] == [1]


@given(st.lists(st.tuples(st.integers(0, 2**64), st.integers(0, 2**64), st.floats(0, 100)), max_size=20))
def test_whatever_the_counters_do_rates_are_none_below_zero(steps: list[tuple[int, int, float]]) -> None:
    """An interface that is made anew counts from the beginning."""
    interfaces, now = Interfaces(), 0.0
    for received, sent, passed_s in steps:
        now += passed_s
        interfaces.take({"eth0": Reading(received, sent, port=True)}, now, 1)
        found = interfaces.traffic("r").total
        assert 0 <= found.in_bytes_per_s <= found.peak_in_bytes_per_s
        assert 0 <= found.out_bytes_per_s <= found.peak_out_bytes_per_s
