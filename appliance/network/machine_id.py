"""What is derived from the machine's identity: the same at each start, another on each machine, and no way back from it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from .errors import BadMachineId

#: 32 hexadecimal digits and a newline; machine-id(5).
_FORM = re.compile(rb"[0-9a-f]{32}\n?")
_LIMIT_BYTES = 64

#: The first byte of a MAC: bit 1 says locally administered, bit 0 (group) must not be set. IEEE 802.
_LOCAL, _GROUP = 0x02, 0x01


class MachineId:
    """It never leaves this object: machine-id(5) calls it confidential and wants a keyed hash wherever it could be seen."""

    def __init__(self, content: bytes) -> None:
        """`content` is that of /etc/machine-id. BadMachineId."""
        if not _FORM.fullmatch(content) or not content.strip(b"0\n"):
            raise BadMachineId("the machine has no identity yet, expected 32 hexadecimal digits")
        self._key = bytes.fromhex(content.decode("ascii"))

    @classmethod
    def read(cls, path: Path) -> MachineId:
        """BadMachineId when the file is not there or holds something else."""
        try:
            with path.open("rb") as file:
                content = file.read(_LIMIT_BYTES)
            return cls(content)
        except OSError as error:
            raise BadMachineId(f"{path} cannot be read: {error.strerror}") from None
        except BadMachineId as error:
            raise BadMachineId(f"{path}: {error}; 'systemd-machine-id-setup' makes one") from None

    def derived(self, purpose: str, size: int) -> bytes:
        """`size` bytes for one purpose; BLAKE2b keyed with the machine's identity."""
        return hashlib.blake2b(purpose.encode(), key=self._key, digest_size=size).digest()

    def mac(self, purpose: str) -> str:
        """A locally administered MAC address: 02:..."""
        address = bytearray(self.derived(purpose, 6))
        address[0] = address[0] & ~_GROUP | _LOCAL
        return address.hex(":")
