"""`python -m appliance.network.gadget`: the service. Exit status: 0 stopped, 78 the machine has no identity."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from functools import partial

from setproctitle import setproctitle

from appliance import __version__
from appliance.config.errors import ConfigError
from appliance.config.load import load_network
from appliance.files import write_atomically
from appliance.identity.device_key import device_key
from appliance.identity.errors import DeviceKeyError
from appliance.network.direct_mode import DirectMode, announcement, dhcp_configuration
from appliance.network.errors import BadMachineId, NetworkError
from appliance.network.machine_id import MachineId
from appliance.network.usb_interface import UsbInterface
from appliance.paths import Paths
from appliance.telemetry.log import set_up_logging

from .description import describe
from .keeper import Keeper
from .service import Service

log = logging.getLogger(__name__)

#: Who may have the serial line open.
LINE_USERS = ("coral-reef-console@ttyGS0.service", "serial-getty@ttyGS0.service")

#: Closing a line may take the kernel 15 s, for what nobody reads.
LINE_TIMEOUT_S = 60.0


def main() -> int:
    """Runs the gadget for `Paths.from_environment()`."""
    setproctitle("coral-reef: gadget")
    set_up_logging("gadget")
    paths = Paths.from_environment()
    try:
        machine = MachineId.read(paths.machine_id)
    except BadMachineId as error:
        log.error("%s", error)
        return os.EX_CONFIG
    mode, trouble = None, ""
    try:
        mode = DirectMode.of(load_network(paths.network_yaml).settings)
    except ConfigError as error:
        # The serial console is what it can be corrected from.
        trouble = "network.yaml has errors ('coral-reef config check' shows them)"
        for problem in error.problems:
            log.error("%s", problem)
    interface = None if mode is None else UsbInterface(mode)
    if mode is not None:
        _prepare(paths, mode)
    if interface is not None:
        try:
            interface.guard()  # before there is anything to guard
        except NetworkError as error:
            log.error("%s", error)
    keeper = Keeper(
        paths.gadgets,
        paths.usb_controllers,
        describe=lambda max_speed: describe(machine, network=mode is not None, max_speed=max_speed),
        interface=interface,
        release_line=_release_line,
        clock=time.monotonic,
        trouble=trouble,
    )
    service = Service(keeper, paths.usb_controllers, publish=partial(write_atomically, paths.usb_link))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, service.stop)
    try:
        service.run()
    finally:
        paths.usb_announcement.unlink(missing_ok=True)
    log.info("stopped")
    return 0


def _prepare(paths: Paths, mode: DirectMode) -> None:
    """What dnsmasq and systemd-resolved read when they start."""
    write_atomically(paths.usb_dhcp, dhcp_configuration(mode).encode())
    try:
        key = device_key(paths.device_key)
    except (DeviceKeyError, OSError) as error:
        log.error("the link is not announced: %s", error)
        return
    text = announcement(mode, version=__version__, fingerprint=key.fingerprint)
    try:
        write_atomically(paths.usb_announcement, text.encode())
    except OSError as error:
        log.error("the link is not announced: %s", error)


def _release_line() -> None:
    """Stops who reads the serial line, and waits for it."""
    try:
        subprocess.run(
            ["systemctl", "--no-ask-password", "stop", *LINE_USERS],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LINE_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("the serial line may still be open: %s", error)


if __name__ == "__main__":
    sys.exit(main())
