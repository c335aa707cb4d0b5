"""What is derived from a machine's identity."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from appliance.network.errors import BadMachineId
from appliance.network.machine_id import MachineId

ONE = b"0123456789abcdef0123456789abcdef\n"
OTHER = b"fedcba9876543210fedcba9876543210\n"


def test_the_same_at_each_start_and_another_on_each_machine() -> None:
    assert MachineId(ONE).mac("a") == MachineId(ONE).mac("a")
    assert len({MachineId(ONE).mac("a"), MachineId(ONE).mac("b"), MachineId(OTHER).mac("a")}) == 3


@hypothesis.given(st.binary(min_size=16, max_size=16).filter(any))
def test_macs_are_local_and_of_one_interface(identity: bytes) -> None:
    mac = MachineId(identity.hex().encode()).mac("usb")
    first = int(mac[:2], 16)
    assert first & 0b11 == 0b10
    assert len(mac) == 17


@hypothesis.given(st.binary(max_size=80))
def test_whatever_stands_in_the_file(content: bytes) -> None:
    try:
        machine = MachineId(content)
    except BadMachineId:
        return
    assert len(content.strip()) == 32
    assert content.strip().decode() not in machine.derived("serial", 16).hex()


@pytest.mark.parametrize(
    "content", [b"", b"uninitialized\n", b"0" * 32, ONE.upper(), ONE + b"x", b"\xff" * 32]
)
def test_no_identity(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "machine-id"
    path.write_bytes(content)
    with pytest.raises(BadMachineId, match="machine-id: the machine has no identity yet, expected 32 hex"):
        MachineId.read(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(BadMachineId, match="cannot be read: No such file"):
        MachineId.read(tmp_path / "machine-id")
