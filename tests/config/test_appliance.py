"""Which settings are whose."""

from __future__ import annotations

import msgspec

from appliance.config.appliance import Appliance, Chat, Scheduler, Text, by_key, gateway_part
from appliance.config.network import Network


def test_every_setting_has_a_key() -> None:
    found = by_key(Appliance(chat=Chat(max_tokens=7)))
    assert found["chat.max_tokens"] == 7
    sections = msgspec.to_builtins(Appliance())
    assert set(found) == {f"{section}.{key}" for section in sections for key in sections[section]}
    assert {"mode", "api.port"} <= set(by_key(Network()))


def test_what_the_gateway_is_given() -> None:
    before = gateway_part(Appliance())
    assert gateway_part(Appliance(text=Text(slots=3), scheduler=Scheduler(queue_limit=9))) == before
    for later in (Appliance(chat=Chat(max_tokens=7)), Appliance(scheduler=Scheduler(queue_timeout_s=1.0))):
        assert gateway_part(later) != before
