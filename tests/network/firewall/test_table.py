"""What nft says of our table, and what it should never say."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st

from appliance.network.errors import CommandFailed
from appliance.network.firewall.table import LISTING_LIMIT_BYTES, Counter, Table, parse_counters

#: As nft says it (1.0.6).
SAID = """{"nftables": [{"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
{"table": {"family": "inet", "name": "coral_reef", "handle": 1}},
{"chain": {"family": "inet", "table": "coral_reef", "name": "input", "handle": 1, "hook": "input", "prio": 0, "policy": "drop"}},
{"rule": {"family": "inet", "table": "coral_reef", "chain": "input", "handle": 4, "comment": "owner.1: a game: 2",
  "expr": [{"match": {"op": "==", "left": {}, "right": 53}}, {"counter": {"packets": 2, "bytes": 100}}, {"accept": null}]}},
{"rule": {"family": "inet", "table": "coral_reef", "chain": "input", "handle": 5, "comment": "owner.1: a game: 2",
  "expr": [{"counter": {"packets": 1, "bytes": 60}}, {"accept": null}]}},
{"rule": {"family": "inet", "table": "coral_reef", "chain": "input", "handle": 6, "comment": "in.rest",
  "expr": [{"counter": {"packets": 0, "bytes": 0}}, {"drop": null}]}},
{"rule": {"family": "inet", "table": "coral_reef", "chain": "input", "handle": 7, "expr": [{"accept": null}]}}]}"""


def test_counters_of_one_rule_add_up() -> None:
    assert parse_counters(SAID) == {"owner.1": Counter(3, 160), "in.rest": Counter()}


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["rule", "expr", "counter", "comment"]), inner)
    ),
)


@hypothesis.given(
    st.text() | JSON.map(lambda found: msgspec.json.encode({"nftables": [{"rule": found}]}).decode())
)
def test_whatever_nft_says(said: str) -> None:
    with contextlib.suppress(CommandFailed):
        assert all(isinstance(each, Counter) for each in parse_counters(said).values())


def test_too_much() -> None:
    with pytest.raises(CommandFailed, match="expected at most"):
        parse_counters(" " * (LISTING_LIMIT_BYTES + 1))


def test_an_nft_that_fails_is_no_table_that_is_not_there(tmp_path: Path) -> None:
    """Only when nft says that there is none, there is none."""

    def nft(*words: str, stdin: str = "") -> str:
        if "tables" in words:
            return "table inet coral_reef\n"
        raise CommandFailed("nft: Operation not permitted")

    with pytest.raises(CommandFailed, match="not permitted"):
        Table(tmp_path / "record", nft).standing()
