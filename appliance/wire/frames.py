"""Frames: four bytes of length, big endian, then one msgpack message."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import pwd
import socket
import struct
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from .errors import BadMessage, Disconnected, FrameError, PeerRefused, VersionError
from .messages import PROTOCOL_VERSION, Hello, Message

#: A frame longer than this is refused unread. The longest honest one is a `Generate` with a long history.
FRAME_LIMIT_BYTES = 1024 * 1024

#: Users in this group may talk to the supervisor and the workers.
GROUP = "coral-reef"

_LENGTH = struct.Struct(">I")
_encoder = msgspec.msgpack.Encoder()

M = TypeVar("M", bound=Message)


def encode(message: Message) -> bytes:
    """The frame of a message; FrameError when it is longer than the limit."""
    try:
        body = _encoder.encode(message)
    except UnicodeEncodeError as error:
        raise FrameError(f"{type(message).__name__}: {error}") from error
    if len(body) > FRAME_LIMIT_BYTES:
        raise FrameError(f"{type(message).__name__} of {len(body)} bytes: at most {FRAME_LIMIT_BYTES}")
    return _LENGTH.pack(len(body)) + body


class Peer(NamedTuple):
    """The process at the other end as the kernel tells of it: unix(7), SO_PEERCRED."""

    pid: int
    uid: int
    gid: int

    @property
    def is_ours(self) -> bool:
        """Whether it is root, or of the same user as we."""
        return self.uid in (0, os.geteuid())


class Decoder(Generic[M]):
    """Bytes in, messages out. `union` is what may arrive on this connection."""

    def __init__(self, union: Any) -> None:
        self._decoder = msgspec.msgpack.Decoder(union)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[M]:
        """The messages that `data` completes. FrameError for anything else; the decoder is then of no more use."""
        return [self.decode(frame) for frame in self.split(data)]

    def split(self, data: bytes) -> list[bytes]:
        """The frames that `data` completes, unread. FrameError for one that is too long: nobody knows where the next begins."""
        self._buffer += data
        frames: list[bytes] = []
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > FRAME_LIMIT_BYTES:
                raise FrameError(f"a frame of {length} bytes: at most {FRAME_LIMIT_BYTES}")
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            frames.append(bytes(self._buffer[start + _LENGTH.size : end]))
            start = end
        del self._buffer[:start]
        return frames

    def decode(self, frame: bytes) -> M:
        """The message in a frame. BadMessage when it is none; the frames after it are as good as before."""
        try:
            message: M = self._decoder.decode(frame)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadMessage(f"not a message of the protocol: {error}") from error
        return message


class Connection(Generic[M]):
    """One end of a connection: messages in, messages out. Whoever opened it closes it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, union: Any) -> None:
        self._reader, self._writer = reader, writer
        self._decoder: Decoder[M] = Decoder(union)
        self._ready: list[bytes] = []

    async def receive(self) -> M:
        """The next message. Disconnected at the end, BadMessage for a frame that holds none, FrameError for what is no frame."""
        while not self._ready:
            try:
                data = await self._reader.read(65_536)
            except (ConnectionError, OSError) as error:
                raise Disconnected(str(error)) from error
            if not data:
                raise Disconnected("the peer closed the connection")
            self._ready = self._decoder.split(data)[::-1]
        return self._decoder.decode(self._ready.pop())

    def post(self, message: Message) -> None:
        """Sends without waiting; what the peer is too slow to read is buffered (see `backlog_bytes`).

        To a peer that is gone it sends nothing: `receive` is where that is noticed.
        """
        frame = encode(message)
        if not self._writer.transport.is_closing():
            self._writer.write(frame)

    async def send(self, message: Message) -> None:
        """Sends and waits until the peer has room. Disconnected when it is gone."""
        try:
            self._writer.write(encode(message))
            await self._writer.drain()
        except (ConnectionError, OSError) as error:
            raise Disconnected(str(error)) from error

    @property
    def backlog_bytes(self) -> int:
        """What was sent and not yet taken by the kernel; 0 when the peer is gone."""
        transport = self._writer.transport
        return 0 if transport.is_closing() else transport.get_write_buffer_size()

    def abort(self) -> None:
        """Ends the connection at once; the peer reads an end."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Ends the connection after what was sent."""
        self._writer.close()
        with contextlib.suppress(ConnectionError, OSError):  # gone already, which is what was wanted
            await self._writer.wait_closed()

    async def greet(self, name: str) -> Hello:
        """Says hello and reads the peer's. VersionError when it speaks another version."""
        self.post(Hello(name=name))
        answer: Message = await self.receive()
        if not isinstance(answer, Hello):
            raise FrameError(f"{type(answer).__name__} where a Hello was expected")
        if answer.version != PROTOCOL_VERSION:
            raise VersionError(f"{answer.name} speaks version {answer.version}, we {PROTOCOL_VERSION}")
        return answer

    def check_peer(self) -> Peer:
        """Who the peer is; PeerRefused unless it is root, ourselves or in the group `coral-reef`."""
        transport_socket: socket.socket = self._writer.get_extra_info("socket")
        raw = transport_socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        peer = Peer(*struct.unpack("3i", raw))
        if peer.is_ours or _in_group(peer.uid, peer.gid):
            return peer
        raise PeerRefused(f"process {peer.pid} of user {peer.uid} is not in the group {GROUP}")


def _in_group(uid: int, gid: int) -> bool:
    try:
        ours = grp.getgrnam(GROUP)
    except KeyError:
        return False
    if gid == ours.gr_gid:
        return True
    try:
        return pwd.getpwuid(uid).pw_name in ours.gr_mem
    except KeyError:
        return False


async def connect(path: str, union: Any, *, name: str) -> Connection[Any]:
    """Connects to the UNIX socket at `path` and exchanges hellos. Disconnected when nobody listens, PeerRefused if we may not."""
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except PermissionError as error:
        raise PeerRefused(f"{path}: {error.strerror}") from error
    except (ConnectionError, OSError) as error:
        raise Disconnected(f"{path}: {error}") from error
    connection: Connection[Any] = Connection(reader, writer, union)
    try:
        await connection.greet(name)
    except BaseException:
        connection.abort()
        raise
    return connection
