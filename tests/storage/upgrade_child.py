"""A process of its own that opens and upgrades the database below STATE, and says whether it had to."""

from __future__ import annotations

import sys
from pathlib import Path

import alembic.command  # noqa: F401  so that the processes meet at the lock, not while importing

from appliance.paths import Paths
from appliance.storage.database import Database


def main(state: str) -> None:
    print("ready", flush=True)
    sys.stdin.readline()
    with Database.open(Paths.under(Path(state))) as database:
        print(database.upgrade(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
