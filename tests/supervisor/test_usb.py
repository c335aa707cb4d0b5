"""What the supervisor makes of what the gadget's service says."""

from __future__ import annotations

import tempfile
from pathlib import Path

import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st

from appliance.supervisor.repairs import Repairs
from appliance.supervisor.usb import Usb
from appliance.wire.messages import UsbLink, UsbState


def usb(path: Path) -> tuple[Usb, Repairs]:
    repairs = Repairs(lambda _repair, _gone: None)
    return Usb(path, repairs), repairs


@pytest.mark.parametrize(
    ("state", "trouble", "expected"),
    [
        (UsbState.WAITING, "", []),
        (UsbState.UNPLUGGED, "", []),
        (UsbState.CONNECTED, "", []),
        (UsbState.CONNECTED, "nft is not installed", ["usb_direct_mode:port"]),
        (UsbState.FROZEN, "", ["usb_frozen:port"]),
        (UsbState.FAILED, "", ["usb_gadget:port"]),
    ],
)
def test_what_is_a_repair(tmp_path: Path, state: UsbState, trouble: str, expected: list[str]) -> None:
    link = UsbLink(state=state, detail="so it is", trouble=trouble)
    (tmp_path / "link.json").write_bytes(msgspec.json.encode(link))
    found, repairs = usb(tmp_path / "link.json")
    found.look()
    assert found.link() == link
    assert [each.id for each in repairs.all()] == expected
    (tmp_path / "link.json").unlink()
    found.look()
    assert found.link() is None
    assert repairs.all() == []


@hypothesis.given(st.binary(max_size=200))
def test_whatever_stands_there(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "link.json"
        path.write_bytes(content)
        found, _ = usb(path)
        found.look()
        assert found.link() is None or isinstance(found.link(), UsbLink)
