"""Restarting the machine and switching it off: systemd-logind does it, polkit lets us (units/polkit)."""

from __future__ import annotations

import logging

from appliance import system_bus
from appliance.wire.messages import PowerAction

from .errors import Denied, PowerUnavailable

log = logging.getLogger(__name__)

#: org.freedesktop.login1(5)
_METHODS = {PowerAction.REBOOT: "Reboot", PowerAction.POWER_OFF: "PowerOff"}
_DOING = {PowerAction.REBOOT: "restarting", PowerAction.POWER_OFF: "switching off"}

#: What polkit's no looks like; the second is asked of a person who is not there.
_DENIALS = frozenset(
    {
        "org.freedesktop.DBus.Error.AccessDenied",
        "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
    }
)


async def machine(action: PowerAction) -> str:
    """Has the whole machine restarted or switched off; returns a sentence when systemd has begun. Denied, PowerUnavailable."""
    log.warning("%s the machine, as asked", _DOING[action])
    try:
        await system_bus.call(
            "org.freedesktop.login1",
            "/org/freedesktop/login1",
            "org.freedesktop.login1.Manager",
            _METHODS[action],
            "b",
            [False],
        )
    except system_bus.BusError as error:
        if error.name in _DENIALS:
            raise Denied(
                f"polkit does not let this service do it ({error}): is /usr/share/polkit-1/rules.d/coral-reef.rules there?"
            ) from error
        raise PowerUnavailable(f"systemd-logind did not do it: {error}") from error
    return f"{_DOING[action]} now"


async def not_ours(_action: PowerAction) -> str:
    """In place of `machine` where the appliance is no service of the machine's: somebody works there."""
    raise PowerUnavailable(
        "this appliance runs beside others on a machine that is not its own: stop it with Ctrl-C"
    )
