"""Reasons in words, those that only a radio gives included."""

from __future__ import annotations

import pytest

from appliance.network.activation import Ended, failure
from appliance.network.errors import Failure


@pytest.mark.parametrize(
    ("ended", "kind", "words"),
    [
        (Ended(7), Failure.WRONG_PASSWORD, "did not accept the password"),
        (Ended(53, seen_with_sae=True), Failure.WRONG_PASSWORD, r"does not accept the password \(WPA3"),
        (Ended(53), Failure.NOT_FOUND, "not in reach"),
        (Ended(5), Failure.NO_ADDRESS, "nobody answers to DHCP"),
        (Ended(40), Failure.NO_CARRIER, "the cable came out"),
        (Ended(0, 9), Failure.WRONG_PASSWORD, "did not accept the password"),
        (Ended(0, 13), Failure.NO_DEVICE, "the kernel does not make such a device"),
        (Ended(999, 999), Failure.OTHER, r"for a reason of its own \(999, 999\)"),
    ],
)
def test_why(ended: Ended, kind: Failure, words: str) -> None:
    error = failure("Home", "wlan0", ended)
    assert error.failure is kind
    with pytest.raises(type(error), match=f"Home did not become active on wlan0: .*{words}"):
        raise error
