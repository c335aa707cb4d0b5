"""Which TPUs are in quarantine, remembered: a restart is not the owner's word."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from appliance.files import write_atomically

log = logging.getLogger(__name__)

#: Hundreds of TPUs, each with a sentence.
FILE_LIMIT_BYTES = 1024 * 1024
REASON_LIMIT_CHARS = 1024

_Quarantined = dict[
    Annotated[str, Meta(min_length=1, max_length=64)],
    Annotated[str, Meta(min_length=1, max_length=REASON_LIMIT_CHARS)],
]
_decoder = msgspec.json.Decoder(_Quarantined)


def remembered(path: Path) -> dict[str, str]:
    """The reasons by the TPUs' ids; nothing when there is no such file, or none that can be read."""
    try:
        with path.open("rb") as file:
            return _decoder.decode(file.read(FILE_LIMIT_BYTES))
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        log.warning("%s: %s; no TPU is in quarantine", path, error)
        return {}


def remember(path: Path, quarantined: Mapping[str, str]) -> None:
    """Writes them. OSError is told to the log: the quarantine holds until the next start."""
    reasons = {tpu_id: reason[:REASON_LIMIT_CHARS] for tpu_id, reason in quarantined.items()}
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        write_atomically(path, msgspec.json.encode(reasons) + b"\n")
    except OSError as error:
        log.warning("%s: %s; the quarantine of TPUs ends with this process", path, error)
