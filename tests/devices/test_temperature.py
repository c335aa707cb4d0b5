"""Thresholds with hysteresis."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.devices.temperature import (
    LOAD_LIMITS,
    OFF_THE_BUS_MILLICELSIUS,
    SANE_MILLICELSIUS,
    Heat,
    Thresholds,
)

THRESHOLDS = Thresholds(80.0, 90.0, 5.0)


def through(*celsius: float) -> list[Heat]:
    heat, found = Heat.NORMAL, []
    for each in celsius:
        heat = THRESHOLDS.after(heat, each)
        found.append(heat)
    return found


def test_up_and_down() -> None:
    normal, throttled, shut_down = Heat
    assert through(79.75, 80.0, 76.0, 74.75) == [normal, throttled, throttled, normal]
    assert through(85.0, 90.0, 86.0, 84.75, 75.0, 74.0) == [
        throttled,
        shut_down,
        shut_down,
        throttled,
        throttled,
        normal,
    ]
    assert through(95.0, 20.0) == [shut_down, normal]
    assert {normal: 1.0, throttled: 0.5, shut_down: 0.0} == LOAD_LIMITS


def test_what_no_sensor_says() -> None:
    assert OFF_THE_BUS_MILLICELSIUS not in SANE_MILLICELSIUS
    assert {-40_000, 0, 125_000} <= set(SANE_MILLICELSIUS)
    assert -40_001 not in SANE_MILLICELSIUS
    assert 125_001 not in SANE_MILLICELSIUS


@given(st.lists(st.floats(-40, 125)), st.floats(-40, 125))
def test_hotter_is_never_less(before: list[float], celsius: float) -> None:
    heat = (through(*before) or [Heat.NORMAL])[-1]
    after = THRESHOLDS.after(heat, celsius)
    assert after <= THRESHOLDS.after(heat, celsius + 1)
    assert THRESHOLDS.after(after, celsius) is after
    if celsius >= 90:
        assert after is Heat.SHUT_DOWN
    if celsius < 75:
        assert after is Heat.NORMAL
