"""The appliance's own key pair (Ed25519), by which others recognise it: made once, and never changed afterwards.

The file belongs to root; a service that has to sign gets it by systemd's LoadCredential=.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from appliance.files import SecretUnusable, create_secret, read_secret

from .errors import DeviceKeyError

#: RFC 8032: the private key, from which everything else follows.
SEED_BYTES = 32


@dataclass(frozen=True)
class DeviceKey:
    """`seed` and `public` are 32 bytes each."""

    seed: bytes = field(repr=False)
    public: bytes

    @property
    def fingerprint(self) -> str:
        """`SHA256:` and 43 characters, in the manner of OpenSSH: SHA-256 of the 32 bytes of the public key, in Base64 without
        padding."""
        digest = base64.b64encode(hashlib.sha256(self.public).digest()).decode("ascii")
        return f"SHA256:{digest.rstrip('=')}"


def device_key(path: Path) -> DeviceKey:
    """The key in the file `path`, made now when there is none. DeviceKeyError when it is unreadable, open to others, or
    malformed: a new one in its place would make a stranger of the appliance. OSError when it cannot be made."""
    if not path.exists():
        create_secret(path, secrets.token_bytes(SEED_BYTES).hex().encode() + b"\n")
    return _from_seed(_read(path))


def _read(path: Path) -> bytes:
    try:
        return read_secret(path, SEED_BYTES)
    except SecretUnusable as error:
        instead = ", or delete it to become another appliance" if error.broken else ""
        raise DeviceKeyError(
            f"The appliance's key {path} {error.why}", remedy=f"{error.remedy}{instead}"
        ) from error


def _from_seed(seed: bytes) -> DeviceKey:
    import libnacl  # late: it loads a C library that nobody else needs

    public, _ = libnacl.crypto_sign_seed_keypair(seed)
    return DeviceKey(seed, public)
