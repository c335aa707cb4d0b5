"""A server's certificate: whether it can be read, its key fits, and for how long it is valid.

There is no parser of certificates here: OpenSSL shakes hands with itself, in memory, and says.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LIMIT_BYTES = 256 * 1024

#: X509_V_FLAG_PARTIAL_CHAIN of x509_vfy.h: what we are told to trust need not be its own issuer.
_PARTIAL_CHAIN = 0x80000

#: x509_vfy.h.
_NOT_YET_VALID, _EXPIRED = 9, 10


class Unusable(Exception):
    """No certificate to serve with; says which file and why."""


class Forbidden(Unusable):
    """Not for this process's eyes."""


class Expired(Unusable):
    """It was valid."""


class NotYetValid(Unusable):
    """It will be, or our clock is wrong."""


@dataclass(frozen=True)
class Validity:
    """`until` in seconds since 1970, and the names that it is for."""

    until: float
    names: tuple[str, ...]


def examine(certificate: Path, key: Path) -> Validity:
    """Reads both files, as the server would. Raises Unusable."""
    text = _read(certificate)
    _read(key)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        server.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise Unusable(f"{key} is not the key of {certificate}") from None
        raise Unusable(f"{certificate} and {key} are not a certificate and its key: {error.reason}") from None
    except (OSError, ValueError) as error:
        raise Unusable(f"{key}: {error}") from None
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= _PARTIAL_CHAIN
    try:
        client.load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError) as error:
        raise Unusable(f"{certificate}: {error}") from None
    return _shake_hands(certificate, server, client)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_LIMIT_BYTES).decode("ascii")
    except PermissionError:
        raise Forbidden(f"this user may not read {path}") from None
    except OSError as error:
        raise Unusable(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Unusable(f"{path} is not PEM: there is more than ASCII in it") from None


def _no_password() -> str:
    raise ValueError("it is locked by a password, which nobody can type at every start")


def _shake_hands(path: Path, server: ssl.SSLContext, client: ssl.SSLContext) -> Validity:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server)
    finished: set[ssl.SSLObject] = set()
    for side in (theirs, ours) * 4:  # TLS 1.2 takes two rounds
        try:
            side.do_handshake()
            finished.add(side)
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            if error.verify_code == _EXPIRED:
                raise Expired(f"{path} has expired") from None
            if error.verify_code == _NOT_YET_VALID:
                raise NotYetValid(f"{path} is not valid yet") from None
            raise Unusable(f"{path}: {error.verify_message}") from None
        except ssl.SSLError as error:
            raise Unusable(f"{path}: {error.reason}") from None
    if theirs not in finished:
        raise Unusable(f"{path}: OpenSSL does not come to an end with it")
    found: dict[str, Any] = dict(theirs.getpeercert() or {})
    names = tuple(str(name) for _, name in found.get("subjectAltName", ()))
    return Validity(float(ssl.cert_time_to_seconds(found["notAfter"])), names)
