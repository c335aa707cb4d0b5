"""Our table in the kernel, by nft(8): loaded, taken away, looked at."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from appliance.files import write_atomically
from appliance.network.errors import CommandFailed
from appliance.network.usb_interface import Run, run_command

from .nft import TABLE, key_of, removal

#: Of what nft lists: 2,000 rules take 1 MB, each with 256 networks 30 MB.
LISTING_LIMIT_BYTES = 64 * 2**20

#: A table that is not as we left it, as text that nft would load.
CHANGED = "# not as it was loaded\n"


@dataclass(frozen=True)
class Counter:
    """What a rule has matched since the table was loaded."""

    packets: int = 0
    size_bytes: int = 0

    def __add__(self, other: Counter) -> Counter:
        return Counter(self.packets + other.packets, self.size_bytes + other.size_bytes)


class _Record(msgspec.Struct):
    """What was loaded last, and how nft listed it right after that."""

    text: str
    listing_sha256: str


class _Rule(msgspec.Struct):
    comment: str = ""
    expr: list[dict[str, Any]] = []


class _Object(msgspec.Struct):
    rule: _Rule | None = None


class _Listing(msgspec.Struct):
    nftables: list[_Object]


class _Counted(msgspec.Struct):
    packets: int = 0
    bytes: int = 0


class Table:
    """Raises CommandFailed; then the kernel has what it had before.

    `record` is a file that ends with the kernel's tables (below /run): whoever starts anew knows by it what was loaded.
    `at_boot` is one that stays: coral-reef-firewall.service loads it before the machine has a network, and before there is
    anybody of ours.
    """

    def __init__(self, record: Path, run: Run = run_command, *, at_boot: Path | None = None) -> None:
        self._record, self._run, self._at_boot = record, run, at_boot

    def load(self, text: str) -> None:
        """Replaces our table by `Firewall.text()` in one transaction; empty takes it away."""
        self._run("nft", "-f", "-", stdin=text or removal())
        listing = self._listing() if text else ""
        record = _Record(text, _digest(listing))
        write_atomically(self._record, msgspec.json.encode(record), mode=0o600)
        if self._at_boot is not None:
            if text:
                write_atomically(self._at_boot, text.encode(), mode=0o600)
            else:
                self._at_boot.unlink(missing_ok=True)

    def standing(self) -> str:
        """The text that was loaded last, if the table still is as it was then. Empty: no table. Else what there is instead, as
        text that `load` takes and that begins with CHANGED."""
        listing = self._listing()
        if not listing:
            return ""
        record = self._read_record()
        if record is not None and record.text and record.listing_sha256 == _digest(listing):
            return record.text
        return f"{CHANGED}{removal()}{listing}"

    def counters(self) -> dict[str, Counter]:
        """By the key of the entry. Empty when there is no table."""
        if not self._exists():
            return {}
        return parse_counters(self._run("nft", "--json", "list", "table", "inet", TABLE))

    def _listing(self) -> str:
        """Without counters: the same as long as nobody changes anything. Empty when there is no table."""
        try:
            listing = self._run("nft", "--stateless", "list", "table", "inet", TABLE)
        except CommandFailed:
            if self._exists():
                raise
            return ""
        if len(listing) > LISTING_LIMIT_BYTES:
            raise CommandFailed(
                f"nft listed {len(listing)} bytes, expected at most {LISTING_LIMIT_BYTES}; "
                "fewer networks in firewall.rules would help"
            )
        return listing

    def _exists(self) -> bool:
        return f"table inet {TABLE}" in self._run("nft", "list", "tables", "inet").splitlines()

    def _read_record(self) -> _Record | None:
        try:
            with self._record.open("rb") as file:
                return msgspec.json.decode(file.read(LISTING_LIMIT_BYTES), type=_Record)
        except (OSError, msgspec.MsgspecError):
            return None


def parse_counters(said: str) -> dict[str, Counter]:
    """What `nft --json list table` says. CommandFailed when it is nothing that we understand."""
    if len(said) > LISTING_LIMIT_BYTES:
        raise CommandFailed(f"nft said {len(said)} bytes, expected at most {LISTING_LIMIT_BYTES}")
    try:
        listing = msgspec.json.decode(said, type=_Listing)
        found: dict[str, Counter] = {}
        for rule in (each.rule for each in listing.nftables if each.rule is not None and each.rule.comment):
            key = key_of(rule.comment)
            for expression in rule.expr:
                if "counter" in expression:
                    counted = msgspec.convert(expression["counter"], _Counted)
                    found[key] = found.get(key, Counter()) + Counter(counted.packets, counted.bytes)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise CommandFailed(f"nft said something unexpected: {error}") from None
    return found


def _digest(listing: str) -> str:
    return hashlib.sha256(listing.encode()).hexdigest()
