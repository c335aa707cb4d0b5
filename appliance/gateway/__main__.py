"""`python -m appliance.gateway --fd N`: a gateway process on a bound socket."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import resource
import socket
import sys

from setproctitle import setproctitle

from appliance.config.errors import ConfigError
from appliance.config.load import load
from appliance.identity.admin_key import ensure_admin_key
from appliance.identity.errors import IdentityError
from appliance.paths import Paths
from appliance.process import die_with_parent
from appliance.storage.database import Database
from appliance.storage.errors import StorageError
from appliance.telemetry.log import set_up_logging

log = logging.getLogger(__name__)

#: Database, workers, libraries; generous.
DESCRIPTORS_BESIDE_CONNECTIONS = 256


def main() -> int:
    """Runs a gateway for `Paths.from_environment()`. Exit status: 0 stopped, 74 database, 78 bad configuration."""
    launcher = os.environ.pop("CORAL_REEF_LAUNCHER", "")
    if launcher:
        die_with_parent(int(launcher))
    parser = argparse.ArgumentParser(
        prog="coral-reef-gateway", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--fd", type=int, required=True, help="descriptor of a listening socket")
    parser.add_argument("--ready-fd", type=int, help="descriptor to write a byte to when requests are served")
    arguments = parser.parse_args()
    setproctitle("coral-reef: gateway")
    set_up_logging("gateway")
    paths = Paths.from_environment()
    try:
        settings = load(paths)
    except ConfigError as error:
        for problem in error.problems:
            log.error("%s", problem)
        return os.EX_CONFIG
    try:
        prepare(paths)
    except (StorageError, IdentityError) as error:
        log.error("%s", error)
        return os.EX_IOERR
    listener = socket.socket(fileno=arguments.fd)
    allow_descriptors(settings.appliance.gateway.connections_limit)

    def ready() -> None:
        if arguments.ready_fd is not None:
            os.write(arguments.ready_fd, b"1")
            os.close(arguments.ready_fd)

    import uvloop

    from .server import serve

    uvloop.run(serve(paths, settings.appliance, listener, ready))
    log.info("stopped")
    gc.freeze()  # all is closed: the interpreter need not look through every module for cycles at the end
    return 0


def allow_descriptors(connections: int) -> None:
    """As many open files as that many connections need, and some for the rest; the usual limit of 1,024 is a soft one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + DESCRIPTORS_BESIDE_CONNECTIONS
    if hard != resource.RLIM_INFINITY and wanted > hard:
        log.warning("only %d open files are allowed, %d connections may need %d", hard, connections, wanted)
        wanted = hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def prepare(paths: Paths) -> None:
    """The database at its newest revision and, on the first start, the first key. Any number of processes may try at once."""
    paths.state.mkdir(mode=0o750, parents=True, exist_ok=True)
    with Database.open(paths) as database:
        if database.upgrade():
            log.info("database %s is up to date", paths.database)
        if ensure_admin_key(paths, database):
            log.info("wrote the first API key to %s", paths.admin_key)


if __name__ == "__main__":
    sys.exit(main())
