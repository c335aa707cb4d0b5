"""What sysfs says about device controllers."""

from __future__ import annotations

import tempfile
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from appliance.network.gadget.controllers import Phase, controllers, look
from tests.network.fake_configfs import FakeConfigfs


def test_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    tree = FakeConfigfs(tmp_path)
    for number in (10, 2, 0):
        tree.add_controller(f"dummy_udc.{number}")
    tree.add_controller("20980000.usb")
    names = [each.name for each in controllers(tree.udc)]
    assert names == ["dummy_udc.0", "dummy_udc.2", "dummy_udc.10", "20980000.usb"]


def test_no_class(tmp_path: Path) -> None:
    assert controllers(tmp_path / "udc") == []


@pytest.mark.parametrize(
    ("state", "phase"),
    [
        ("not attached", Phase.AWAY),
        ("powered", Phase.HALFWAY),
        ("addressed", Phase.HALFWAY),
        ("configured", Phase.CONFIGURED),
        ("suspended", Phase.AWAY),
        ("something new", Phase.AWAY),
    ],
)
def test_states(tmp_path: Path, state: str, phase: Phase) -> None:
    tree = FakeConfigfs(tmp_path)
    tree.add_controller("udc", state, "super-speed")
    (found,) = controllers(tree.udc)
    assert (found.phase, found.state, found.max_speed, found.speed) == (
        phase,
        state,
        "super-speed",
        "super-speed",
    )


@hypothesis.given(st.binary(max_size=600), st.binary(max_size=600))
def test_whatever_stands_there(state: bytes, speed: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "state").write_bytes(state)
        (Path(folder) / "maximum_speed").write_bytes(speed)
        found = look(Path(folder))
        assert found.phase in Phase
        assert found.max_speed in (
            "",
            "low-speed",
            "full-speed",
            "high-speed",
            "super-speed",
            "super-speed-plus",
        )
        assert len(found.state) <= 256
