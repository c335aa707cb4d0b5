"""network.yaml as a text, and what it says."""

from __future__ import annotations

import tempfile
from pathlib import Path

from appliance.config.load import load_network
from appliance.config.network import Network


def network_of(text: str) -> Network:
    """The settings of a file with this text. ConfigError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.yaml"
        path.write_text(text, "utf-8")
        return load_network(path).settings
