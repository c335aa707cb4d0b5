"""Where a worker's gateways come in and are heard, and the folder that is its own."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

from appliance.wire.errors import Disconnected, FrameError, PeerRefused, VersionError
from appliance.wire.frames import Connection
from appliance.wire.messages import Message, ToWorker, WorkerSpec, protocol_failure

log = logging.getLogger(__name__)

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


async def hear(
    name: str,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    handle: Callable[[Connection[Message], Message], None],
    left: Callable[[Connection[Message]], None],
) -> None:
    """Speaks with a gateway for the worker `name` until it goes or is refused; then `left` ends what it had asked for."""
    connection: Connection[Message] = Connection(reader, writer, ToWorker)
    try:
        connection.check_peer()
        await connection.greet(name)
        while True:
            handle(connection, await connection.receive())
    except Disconnected:
        pass  # a gateway ends its connection when it likes
    except (FrameError, VersionError, PeerRefused) as error:
        log.warning("refusing a connection: %.300s", error)
        connection.post(protocol_failure(error))
    finally:
        left(connection)
        await connection.close()
