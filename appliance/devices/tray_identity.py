"""A tray's identity: a JSON document in the memory (EEPROM) that travels with it. Anybody may have written it: it is believed
once it has been checked."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from .errors import BadTrayIdentity

#: The longest document. A memory may be larger: what follows is padding.
IDENTITY_LIMIT_BYTES = 256 * 1024

#: The largest memory that is read; over its bus, some 10 KB a second.
MEMORY_LIMIT_BYTES = 2 * IDENTITY_LIMIT_BYTES
PART_BYTES = 4096

#: What an EEPROM holds where nobody has written: erased, or cleared.
PADDING = b"\xff\x00"

_Word = r"^[A-Za-z0-9][A-Za-z0-9_.-]*\Z"


class TrayIdentity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Format 1. `id` is one tray's and no other's; `persona` whom it is bound to, empty for nobody; `slots` how
    many TPUs it has room for; `notes` are for people."""

    format: Annotated[int, Meta(ge=1, le=1)]
    id: Annotated[str, Meta(min_length=1, max_length=64, pattern=_Word)]
    persona: Annotated[str, Meta(max_length=63, pattern=r"^(?:[A-Za-z0-9][A-Za-z0-9_.-]*)?\Z")] = ""
    slots: Annotated[int, Meta(ge=1, le=64)] | None = None
    notes: Annotated[str, Meta(max_length=4096)] = ""


_decoder = msgspec.json.Decoder(TrayIdentity)


def parse(data: bytes) -> TrayIdentity | None:
    """The identity in what a memory holds; None when it is blank. BadTrayIdentity."""
    document = data.rstrip(PADDING)
    if not document.strip():
        return None
    if len(document) > IDENTITY_LIMIT_BYTES:
        raise BadTrayIdentity(f"is longer than {IDENTITY_LIMIT_BYTES} bytes")
    try:
        return _decoder.decode(document)
    except RecursionError:
        raise BadTrayIdentity("is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadTrayIdentity(f"is no tray identity: {error}"[:512]) from None


def parts(path: Path) -> Iterator[bytes]:
    """What a memory holds, in parts that take half a second each at the most; nothing when it is not there. BadTrayIdentity."""
    try:
        # A pipe or a terminal of that name must not make us wait.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BadTrayIdentity("is no file")
            length = 0
            while part := file.read(PART_BYTES):
                length += len(part)
                if length > MEMORY_LIMIT_BYTES:
                    raise BadTrayIdentity(f"is larger than {MEMORY_LIMIT_BYTES} bytes")
                yield part
    except FileNotFoundError:
        return
    except OSError as error:
        raise BadTrayIdentity(f"cannot be read: {error.strerror}") from None


async def read(path: Path) -> TrayIdentity | None:
    """The identity in a file; None when it is blank or not there. BadTrayIdentity. It may take half a minute, and ends soon when
    it is cancelled: no thread is left to wait for."""
    reading = parts(path)
    data = bytearray()
    while part := await asyncio.to_thread(next, reading, b""):
        data += part
    return parse(bytes(data))
