"""The database's key: 32 random bytes, written as hex into a file that only its owner reads.

A raw key, no passphrase: deriving one costs 130 ms an open, and the file's permissions protect both alike.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from appliance.files import SecretUnusable, create_secret, read_secret

from .errors import KeyFileError

#: AES-256: what SQLCipher takes as a raw key.
KEY_BYTES = 32


def obtain_key(path: Path, database: Path) -> bytes:
    """The key in the file `path`; made now when neither the file nor anything in `database` exists.

    KeyFileError when the file is missing although there is a database (a new key would only hide the loss),
    and for everything that `read_key` refuses. OSError when the file cannot be made.
    """
    # The order matters: whoever makes a database has made its key before. Seen the other way round, another
    # process that creates both between our two looks would seem to have a database without a key.
    encrypted_data_exists = database.exists() and database.stat().st_size > 0
    if not path.exists():
        if encrypted_data_exists:
            raise KeyFileError(
                f"The database {database} exists, its key file {path} does not",
                remedy=f"Restore {path.name} from a backup. Without it nobody can read the database; "
                f"to start afresh, move {database} away",
            )
        create_secret(path, secrets.token_bytes(KEY_BYTES).hex().encode() + b"\n")
    return read_key(path)


def read_key(path: Path) -> bytes:
    """The 32 bytes in the file `path`. KeyFileError when it is unreadable, open to others, or malformed."""
    try:
        return read_secret(path, KEY_BYTES)
    except SecretUnusable as error:
        raise KeyFileError(f"The database's key file {path} {error.why}", remedy=error.remedy) from error
