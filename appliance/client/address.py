"""Where the gateway of an appliance on this machine listens."""

from __future__ import annotations

from appliance.config.errors import ConfigError
from appliance.config.load import load_network
from appliance.config.network import Api
from appliance.paths import Paths


def gateway_url(paths: Paths) -> str | None:
    """What `coral-reef run` left in its folder, or where systemd listens for the service; None when none of them runs there."""
    try:
        return (paths.run / "url").read_text("utf-8").strip()
    except OSError:
        return _service_url(paths) if paths == Paths.system() else None


def _service_url(paths: Paths) -> str:
    """As far as the owner's files tell; never beyond this machine."""
    try:
        port = load_network(paths.network_yaml).settings.api.port
    except ConfigError:  # broken, or not for this user's eyes
        port = Api().port
    return f"http://127.0.0.1:{port}"
