"""`python -m console`: serves a hardware line, with login (`--line ttyGS0`), or a pseudo-terminal, without (`--pty FD`)."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import signal
from pathlib import Path

from setproctitle import setproctitle
from systemd import daemon

from appliance.config.appliance import Console
from appliance.config.errors import ConfigError
from appliance.config.load import load_appliance
from appliance.paths import Paths
from appliance.process import die_with_parent, watchdog_period_s
from appliance.telemetry.log import set_up_logging

from .line import PseudoTerminal, open_serial
from .link import TerminalCable, cable_of
from .session import Visit, visits

log = logging.getLogger(__name__)

#: A device below /dev, as units are instanced by it.
_DEVICE = re.compile(r"tty[A-Za-z]{1,8}[0-9]{1,3}")


def main() -> int:
    """Runs the console for `Paths.from_environment()` until SIGTERM. Exit status: 0 stopped, 2 wrong use."""
    launcher = os.environ.pop("CORAL_REEF_LAUNCHER", "")
    if launcher:
        die_with_parent(int(launcher))
    parser = argparse.ArgumentParser(
        prog="coral-reef-console", description=(__doc__ or "").partition("\n")[0]
    )
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--line", type=_device, metavar="DEVICE", help="below /dev, as ttyGS0")
    kinds.add_argument("--pty", type=int, metavar="FD", help="descriptor of a pseudo-terminal's master")
    arguments = parser.parse_args()
    set_up_logging("console")
    asyncio.run(serve(Paths.from_environment(), line=arguments.line, pty=arguments.pty))
    log.info("stopped")
    return 0


def _device(text: str) -> str:
    if not _DEVICE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no serial device: expected a name like ttyGS0")
    return text


async def serve(paths: Paths, *, line: str | None, pty: int | None) -> None:
    """Until SIGTERM or SIGINT; then the line is given up at once, whoever is there."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    serving = asyncio.create_task(_serve_line(paths, line) if line else _serve_terminal(paths, pty))
    stopping = asyncio.create_task(stop.wait())
    beating = asyncio.create_task(_beat())
    daemon.notify("READY=1")
    await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
    daemon.notify("STOPPING=1")
    for task in (serving, stopping, beating):
        task.cancel()
    ended = await asyncio.gather(serving, stopping, beating, return_exceptions=True)
    if isinstance(ended[0], Exception):
        raise ended[0]


async def _serve_line(paths: Paths, line: str) -> None:
    setproctitle(f"coral-reef: console {line}")
    cable = cable_of(paths, line)
    device = Path("/dev") / line

    def visit() -> Visit:
        return Visit(
            paths,
            line,
            cable,
            lambda received, lost: open_serial(device, received=received, lost=lost),
            login=True,
            idle_logout_s=_settings(paths).idle_logout_s,
        )

    await visits(visit, cable, line)


async def _serve_terminal(paths: Paths, descriptor: int | None) -> None:
    assert descriptor is not None
    terminal = PseudoTerminal(descriptor)
    setproctitle(f"coral-reef: console {terminal.name}")
    cable = TerminalCable(terminal.descriptor)

    def visit() -> Visit:
        return Visit(
            paths,
            terminal.name,
            cable,
            lambda received, lost: terminal.open(received=received, lost=lost),
            login=False,
            idle_logout_s=0.0,
        )

    try:
        await visits(visit, cable, terminal.name)
    finally:
        terminal.close()


def _settings(paths: Paths) -> Console:
    """The owner's, read anew for each session; the defaults where the file has errors, which the supervisor tells of."""
    try:
        return load_appliance(paths.appliance_toml).settings.console
    except ConfigError:
        return Console()


async def _beat() -> None:
    """Tells systemd that the loop turns: all that this process does, it does there."""
    period_s = watchdog_period_s()
    while period_s is not None:
        daemon.notify("WATCHDOG=1")
        await asyncio.sleep(period_s)


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    # Not sys.exit: a thread may still wait in close(2), and nobody waits for it.
    os._exit(status)
