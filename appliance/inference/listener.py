"""Where a worker's gateways come in, and the folder that is its own."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

from appliance.wire.messages import WorkerSpec

#: Gateways that may be on their way in.
BACKLOG = 64


def own_folder(spec: WorkerSpec) -> Path:
    """The worker's folder, empty: an engine does not load over a socket that a predecessor left."""
    folder = Path(spec.folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    return folder


def listen(spec: WorkerSpec) -> socket.socket:
    """The worker's socket, open to its user and its group."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    Path(spec.socket).unlink(missing_ok=True)
    listener.bind(spec.socket)
    Path(spec.socket).chmod(0o660)
    listener.listen(BACKLOG)
    return listener
