"""What the kernel of this machine says of its devices."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.network import kernel
from appliance.network.kernel import addresses_of, mtu_limits, mtu_of


def test_the_loopback_device() -> None:
    assert "127.0.0.1/8" in addresses_of("lo")
    assert mtu_of("lo") == 65536
    assert addresses_of("nothing") == set()
    assert mtu_of("nothing") == 0


def test_limits() -> None:
    """At least one device of any machine says what it takes; what it says is no less than what it has."""
    limits = mtu_limits()
    assert all(mtu_of(name) <= limit for name, limit in limits.items())


@given(st.binary(max_size=200))
def test_whatever_it_says(data: bytes) -> None:
    bodies = [body for _, body in kernel._messages(data)]
    assert sum(map(len, bodies)) <= len(data)
    for each in (*bodies, data):
        assert all(name and limit > 0 for name, limit in kernel._limit(each).items())


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_GETLINK", 9999)
    assert mtu_limits() == {}
