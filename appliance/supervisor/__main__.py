"""`python -m appliance.supervisor`: the service. Exit status: 0 stopped, 75 state folder in use, 78 bad configuration."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from setproctitle import setproctitle

from appliance.config.errors import ConfigError
from appliance.config.load import load
from appliance.paths import Paths
from appliance.process import die_with_parent, give_back_blocks
from appliance.telemetry.log import set_up_logging

from .errors import AlreadyRunning
from .service import StateLock, Supervisor

#: The hash of a password takes one of 19 MiB, for some 50 ms.
LARGE_BLOCK_BYTES = 1024 * 1024

log = logging.getLogger(__name__)


def main() -> int:
    """Runs the supervisor for `Paths.from_environment()`."""
    launcher = os.environ.pop("CORAL_REEF_LAUNCHER", "")
    if launcher:
        die_with_parent(int(launcher))
    setproctitle("coral-reef: supervisor")
    set_up_logging("supervisor")
    give_back_blocks(LARGE_BLOCK_BYTES)
    paths = Paths.from_environment()
    try:
        settings = load(paths)
    except ConfigError as error:
        for problem in error.problems:
            log.error("%s", problem)
        return os.EX_CONFIG
    for warning in settings.warnings:
        log.warning("%s", warning)
    for folder in (paths.state, paths.run, paths.supervisor, paths.workers):
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    try:
        with StateLock(paths.lock):
            asyncio.run(Supervisor(paths, settings).run())
    except AlreadyRunning as error:
        log.error("%s", error)
        return os.EX_TEMPFAIL
    return 0


if __name__ == "__main__":
    sys.exit(main())
