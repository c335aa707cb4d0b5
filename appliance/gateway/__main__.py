"""`python -m appliance.gateway`: the gateway's processes on one listening socket, systemd's (sd_listen_fds(3)) or `--fd`'s."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import resource
import socket
from collections.abc import Sequence
from ipaddress import ip_address

from setproctitle import setproctitle
from systemd import daemon

from appliance.config.appliance import gateway_part
from appliance.config.errors import ConfigError
from appliance.config.load import Settings, load
from appliance.identity.admin_key import ensure_admin_key
from appliance.identity.errors import IdentityError
from appliance.network.direct_mode import DirectMode
from appliance.paths import Paths
from appliance.process import available_cores, die_with_parent, watchdog_period_s
from appliance.storage.database import Database
from appliance.storage.errors import StorageError
from appliance.telemetry.log import set_up_logging
from appliance.telemetry.network_counters import Board, NetworkCounters

from .processes import BEAT_S, Parent, Plan, Processes

log = logging.getLogger(__name__)

#: Database, workers, libraries; generous.
DESCRIPTORS_BESIDE_CONNECTIONS = 256

#: Processes on a machine with more cores than that, unless its owner says otherwise.
PROCESSES_LIMIT = 64


def main() -> int:
    """Runs the gateway for `Paths.from_environment()`.

    Exit status: 0 stopped, 64 no socket, 74 database, 78 bad configuration, otherwise that of a process which kept failing.
    """
    launcher = os.environ.pop("CORAL_REEF_LAUNCHER", "")
    if launcher:
        die_with_parent(int(launcher))
    parser = argparse.ArgumentParser(
        prog="coral-reef-gateway", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--fd", type=int, help="descriptor of a listening socket (default: what systemd passes)"
    )
    parser.add_argument("--ready-fd", type=int, help="descriptor to write a byte to when requests are served")
    arguments = parser.parse_args()
    setproctitle("coral-reef: parent of gateways")
    set_up_logging("gateway")
    descriptors = daemon.listen_fds() if arguments.fd is None else [arguments.fd]
    if not descriptors:
        log.error("there is no socket to listen on: start coral-reef-gateway.socket, or name one with --fd")
        return os.EX_USAGE
    listeners = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    paths = Paths.from_environment()
    settings = _load(paths)
    if settings is None:
        return os.EX_CONFIG
    if arguments.fd is None:
        _compare(settings, listeners)
    try:
        prepare(paths)
    except (StorageError, IdentityError) as error:
        log.error("%s", error)
        return os.EX_IOERR

    board = Board()

    def replan() -> Plan | None:
        later = _load(paths)
        return None if later is None else _plan(paths, later, listeners, board)

    def serving() -> None:
        if arguments.ready_fd is not None:
            os.write(arguments.ready_fd, b"1")
            os.close(arguments.ready_fd)

    status = Processes(
        _plan(paths, settings, listeners, board),
        replan=replan,
        tell=daemon.notify,
        serving=serving,
        watchdog_s=watchdog_period_s(),
    ).run()
    log.info("stopped")
    return status


def _load(paths: Paths) -> Settings | None:
    """The owner's settings; None, and every problem in the log, when they have errors."""
    try:
        return load(paths)
    except ConfigError as error:
        for problem in error.problems:
            log.error("%s", problem)
        return None


def _plan(paths: Paths, settings: Settings, listeners: Sequence[socket.socket], board: Board) -> Plan:
    import uvloop

    from .server import serve

    gateway = settings.appliance.gateway

    def run(parent: Parent) -> int:
        # Readiness and watchdog are the parent's business.
        os.environ.pop("NOTIFY_SOCKET", None)

        async def beating() -> None:
            while True:
                parent.beat()
                await asyncio.sleep(BEAT_S)

        async def life() -> None:
            tasks: list[asyncio.Task[None]] = []

            def ready() -> None:
                # What is there now stays: to look through it for cycles kept every client waiting for 150 ms now and then.
                gc.freeze()
                tasks.append(asyncio.create_task(beating(), name="beat"))

            # With more processes than places, some are not counted: a mistake that nobody makes by accident.
            counters = NetworkCounters(
                *((board, parent.place) if parent.place < board.places else (Board(1), 0))
            )
            await serve(paths, settings.appliance, listeners, ready, parent.changed, counters)
            for task in tasks:
                task.cancel()

        uvloop.run(life())
        gc.freeze()  # all is closed: the interpreter need not look through every module for cycles at the end
        return 0

    allow_descriptors(gateway.connections_limit)
    count = gateway.processes or min(available_cores(), PROCESSES_LIMIT)
    return Plan(count, run, gateway.drain_s, gateway_part(settings.appliance))


def _compare(settings: Settings, listeners: Sequence[socket.socket]) -> None:
    """systemd holds the sockets; tells the owner when network.yaml says otherwise."""
    ports = {each.getsockname()[1] for each in listeners if each.family != socket.AF_UNIX}
    hosts = {ip_address(each.getsockname()[0]) for each in listeners if each.family != socket.AF_UNIX}
    port = settings.network.api.port
    if ports and port not in ports:
        log.warning(
            "network.yaml says api.port: %d, coral-reef-gateway.socket listens on %s; "
            "change it with `systemctl edit coral-reef-gateway.socket`",
            port,
            ", ".join(map(str, sorted(ports))),
        )
    link = DirectMode.of(settings.network)
    if (
        hosts
        and link is not None
        and not any(each == link.address.ip or each.is_unspecified for each in hosts)
    ):
        log.warning(
            "network.yaml gives the USB link the address %s, where coral-reef-gateway.socket does not listen; "
            "change it with `systemctl edit coral-reef-gateway.socket`",
            link.address,
        )


def allow_descriptors(connections: int) -> None:
    """As many open files as that many connections need, and some for the rest; the usual limit of 1,024 is a soft one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + DESCRIPTORS_BESIDE_CONNECTIONS
    if hard != resource.RLIM_INFINITY and wanted > hard:
        log.warning("only %d open files are allowed, %d connections may need %d", hard, connections, wanted)
        wanted = hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def prepare(paths: Paths) -> None:
    """The database at its newest revision and, on the first start, the first key. Any number of gateways may try at once."""
    paths.state.mkdir(mode=0o750, parents=True, exist_ok=True)
    with Database.open(paths) as database:
        if database.upgrade():
            log.info("database %s is up to date", paths.database)
        if ensure_admin_key(paths, database):
            log.info("wrote the first API key to %s", paths.admin_key)


if __name__ == "__main__":
    exit_status = main()
    logging.shutdown()
    # Not sys.exit: to take down all that is imported takes seconds on a busy machine, and the watchdog does not wait.
    os._exit(exit_status)
