"""What is being changed, on the disk: whoever finds it after a crash knows how to go back, or to the end."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from appliance.files import sync_folder, write_atomically

from .errors import NetworkError

VERSION = 1

#: A record of a few profiles and two firewalls with 1,000 rules each takes some 200 KB.
LIMIT_BYTES = 16 * 2**20


class Made(msgspec.Struct, frozen=True):
    """A new profile, and the one of ours that it takes the place of (empty: none)."""

    role: str
    interface: str
    new: str
    old: str


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`trying`: everything goes back. `committing`: the new profiles are on the disk, the old ones go.

    `before`: interface -> the profile that was active there, ours or not; empty: none. `deadline`: Unix time at which it goes
    back unless somebody confirms; 0: nobody is asked. `boot_id` and `began_ms` (CLOCK_BOOTTIME) tell which checkpoint is ours.
    """

    phase: Literal["trying", "committing"]
    boot_id: str
    began_ms: int
    deadline: float
    digest: str
    made: tuple[Made, ...]
    removed: tuple[str, ...]
    before: dict[str, str]
    changes_firewall: bool
    old_firewall: str
    new_firewall: str
    version: int = VERSION


class BadRecord(NetworkError):
    """It is not what we wrote. The message says where it is."""


def write(path: Path, record: Record) -> None:
    """Durable when it returns; readable for its owner alone. OSError."""
    write_atomically(path, msgspec.json.encode(record), mode=0o600)


def read(path: Path) -> Record | None:
    """None without one. BadRecord, OSError."""
    try:
        with path.open("rb") as file:
            content = file.read(LIMIT_BYTES + 1)
    except FileNotFoundError:
        return None
    if len(content) > LIMIT_BYTES:
        raise BadRecord(f"{path}: larger than {LIMIT_BYTES} bytes")
    try:
        record = msgspec.json.decode(content, type=Record)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRecord(f"{path}: {error}") from None
    if record.version != VERSION:
        raise BadRecord(f"{path}: of version {record.version}, expected {VERSION}")
    return record


def remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def set_aside(path: Path) -> Path:
    """For whoever wants to know what it was."""
    aside = path.with_suffix(".unreadable")
    path.replace(aside)
    sync_folder(path.parent)
    return aside


def boot_id() -> str:
    """proc(5), /proc/sys/kernel/random/boot_id: another one after each start of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
