"""What can be typed: a file a command."""

from __future__ import annotations

from . import (
    chat,
    configure,
    leave,
    logs,
    model,
    net,
    power,
    repairs,
    status,
    tpu,
    user,
    watch,
    worker,
)
from . import (
    help as help_,
)
from .command import Command

#: In the order in which `help` tells of them.
COMMANDS: tuple[Command, ...] = (
    status.COMMAND,
    watch.COMMAND,
    chat.COMMAND,
    repairs.COMMAND,
    tpu.COMMAND,
    worker.COMMAND,
    model.COMMAND,
    logs.COMMAND,
    net.COMMAND,
    configure.COMMAND,
    user.COMMAND,
    power.REBOOT,
    power.SHUTDOWN,
    help_.COMMAND,
    leave.COMMAND,
)

BY_NAME: dict[str, Command] = {name: each for each in COMMANDS for name in (each.name, *each.aliases)}
