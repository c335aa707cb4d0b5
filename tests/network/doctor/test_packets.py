"""What is sent to strangers, and what is made of anything that they send back."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.network.doctor import arp, dns, icmp, ntp
from appliance.network.doctor.dns import ResponseCode

U16 = st.integers(0, 0xFFFF)


@given(U16, U16, st.binary(max_size=2000))
def test_an_echo_request_is_read_back_as_its_reply(ident: int, number: int, payload: bytes) -> None:
    request = icmp.request(4, ident, number, payload)
    assert icmp.checksum(request) == 0
    answer = b"\0" + request[1:]
    assert icmp.reply(4, answer, raw=False) == (ident, number, payload)
    assert icmp.reply(4, b"\x45" + bytes(19) + answer, raw=True) == (ident, number, payload)
    assert icmp.reply(4, request, raw=False) is None
    assert icmp.reply(6, b"\x81" + icmp.request(6, ident, number, payload)[1:], raw=True) == (
        ident,
        number,
        payload,
    )


@given(st.binary(max_size=200), st.sampled_from([4, 6]), st.booleans())
def test_any_packet_is_a_reply_or_none(packet: bytes, version: int, raw: bool) -> None:
    found = icmp.reply(version, packet, raw=raw)
    assert found is None or found[2] in packet


@given(U16, st.from_regex(r"\A[a-z]{1,63}(\.[a-z]{1,63}){0,2}\.?\Z"))
def test_a_question_of_dns(ident: int, name: str) -> None:
    packet = dns.question(ident, name, dns.A)
    assert struct.unpack_from("!HHHHHH", packet) == (ident, 0x0100, 1, 0, 0, 0)
    labels, at = [], 12
    while packet[at]:
        labels.append(packet[at + 1 : at + 1 + packet[at]].decode())
        at += packet[at] + 1
    assert labels == name.rstrip(".").split(".")
    assert packet[at + 1 :] == struct.pack("!HH", dns.A, 1)
    assert dns.answer_to(ident, packet) is None, "a question is no answer"
    assert dns.answer_to(ident, packet[:2] + b"\x81\x85" + packet[4:]) is ResponseCode.REFUSED


@pytest.mark.parametrize("name", ["x" * 64, ".".join(["x" * 60] * 5), "a..b\udc80"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="is no name"):
        dns.question(1, name, dns.A)


@given(U16, st.binary(max_size=600))
def test_any_answer_of_dns(ident: int, packet: bytes) -> None:
    found = dns.answer_to(ident, packet)
    assert found is None or packet[:2] == ident.to_bytes(2, "big")


@given(st.floats(0, 2**33), st.floats(-1e6, 1e6), st.floats(0, 10), st.integers(1, 15))
def test_the_offset_of_a_clock(sent_s: float, offset_s: float, way_s: float, stratum: int) -> None:
    """A server whose clock is ahead by `offset_s` answers at once, over a way as long in both directions; eras included."""
    question = ntp.question(sent_s)
    theirs = ntp.question(sent_s + offset_s + way_s)[40:]
    answer = bytes([0x24, stratum, 0, 0]) + bytes(20) + question[40:] + theirs + theirs
    found = ntp.answer_to(answer, sent_s, sent_s + 2 * way_s)
    assert found is not None
    assert found.offset_s == pytest.approx(offset_s, abs=1e-5)
    assert found.knows
    assert ntp.answer_to(answer, sent_s + 1, sent_s + 2) is None, "to another question"
    assert ntp.answer_to(b"\xe4\0" + answer[2:], sent_s, sent_s) is not None
    assert not getattr(ntp.answer_to(b"\xe4\0" + answer[2:], sent_s, sent_s), "knows", True)


@given(st.binary(max_size=100))
def test_any_answer_of_ntp(packet: bytes) -> None:
    assert ntp.answer_to(packet, 1e9, 1e9) is None


OWN, OTHER = b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2"
ADDRESS = IPv4Address("192.168.1.20")


def test_a_probe_and_who_objects() -> None:
    frame = arp.probe(OWN, ADDRESS)
    assert len(frame) == 42
    assert arp.holder(frame, OWN, ADDRESS) is None, "our own probe"
    reply = (
        OWN
        + OTHER
        + b"\x08\x06"
        + struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 2, OTHER, ADDRESS.packed, OWN, bytes(4))
    )
    assert arp.holder(reply, OWN, ADDRESS) == OTHER
    assert arp.holder(reply, OTHER, ADDRESS) is None
    assert arp.holder(reply, OWN, IPv4Address("192.168.1.21")) is None


@given(st.binary(max_size=100))
def test_any_frame(frame: bytes) -> None:
    found = arp.holder(frame, OWN, ADDRESS)
    assert found is None or ADDRESS.packed in frame
