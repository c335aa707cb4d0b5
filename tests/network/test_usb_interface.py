"""The interface of direct mode: what is done, and what is left alone."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Interface

import hypothesis
import pytest
from hypothesis import strategies as st

from appliance.network.direct_mode import DirectMode
from appliance.network.errors import CommandFailed
from appliance.network.usb_interface import UsbInterface, parse_address, run_command
from tests.network.programs import Programs


def test_up_and_then_nothing_more_to_do() -> None:
    programs = Programs()
    interface = UsbInterface(DirectMode(), programs.run)
    interface.up()
    assert (programs.addresses, programs.up, list(programs.tables)) == (
        ["10.67.82.1/28"],
        True,
        ["coral_reef_usb"],
    )
    programs.log.clear()
    interface.up()
    assert programs.log == ["nft -f -", *["ip -json address show dev usb0"] * 2]


def test_an_address_of_before_goes() -> None:
    programs = Programs()
    programs.addresses = ["10.0.0.1/24"]
    UsbInterface(DirectMode(IPv4Interface("10.1.1.1/29")), programs.run).up()
    assert programs.addresses == ["10.1.1.1/29"]


def test_the_firewall_comes_first() -> None:
    programs = Programs()
    programs.broken["nft"] = CommandFailed("no")
    with pytest.raises(CommandFailed):
        UsbInterface(DirectMode(), programs.run).up()
    assert not programs.up
    assert programs.addresses == []


def test_it_looks_whether_it_is_so() -> None:
    programs = Programs()
    real = programs.run

    def deaf(*words: str, stdin: str = "") -> str:
        return "" if words[:3] == ("ip", "link", "set") else real(*words, stdin=stdin)

    with pytest.raises(CommandFailed, match=r"usb0 has 10\.67\.82\.1/28, expected 10\.67\.82\.1/28, up"):
        UsbInterface(DirectMode(), deaf).up()


def test_the_firewall_goes() -> None:
    programs = Programs()
    interface = UsbInterface(DirectMode(), programs.run)
    interface.unguard()
    interface.guard()
    interface.unguard()
    assert programs.tables == {}


@hypothesis.given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(str))
def test_whatever_ip_says(said: str) -> None:
    with contextlib.suppress(CommandFailed):
        assert isinstance(parse_address(said).flags, list)


def test_a_program_that_complains() -> None:
    with pytest.raises(CommandFailed, match=r"^sh -c echo no >&2; exit 3: no$"):
        run_command("sh", "-c", "echo no >&2; exit 3")
    with pytest.raises(CommandFailed, match="no-such-program is not installed"):
        run_command("no-such-program")
    assert run_command("cat", stdin="yes") == "yes"
