"""The doctor as a process of its own, behind a socket like systemd's, and peers there that are none."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config.network import Role
from appliance.network.doctor.visit import NoDoctor, Question, roles_of, visit
from appliance.wire.messages import Check, Finding, NetworkPort, NetworkState, PortState

Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(peer: Peer) -> AsyncIterator[Path]:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    server = await asyncio.start_unix_server(peer, str(folder / "s"))
    try:
        yield folder / "s"
    finally:
        server.close()
        shutil.rmtree(folder)


def serve_once(listener: socket.socket) -> None:
    """What systemd does with Accept=yes: the connection is a new process's input and output."""
    connection, _ = listener.accept()
    with connection:
        subprocess.run(
            [sys.executable, "-m", "appliance.network.doctor"],
            stdin=connection.fileno(),
            stdout=connection.fileno(),
            check=True,
            timeout=120,
        )


async def test_an_examination(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CORAL_REEF_STATE", str(tmp_path))
    told: list[Finding] = []
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as listener:
        path = Path(folder, "s")
        listener.bind(str(path))
        listener.listen()
        serving = asyncio.create_task(asyncio.to_thread(serve_once, listener))
        found = await visit(path, host="127.0.0.1", roles={"eth0": Role.PRIMARY}, tell=told.append)
        await serving
    assert sorted(told, key=repr) == sorted(found, key=repr)
    checks = [each.check for each in found]
    assert checks == sorted(checks, key=list(Check).index)
    assert {Check.PORTS, Check.CERTIFICATE, Check.CLIENTS} <= set(checks)


async def test_nobody_is_there(tmp_path: Path) -> None:
    with pytest.raises(NoDoctor, match="no doctor is at"):
        await visit(tmp_path / "none")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"", "says nothing"),
        (b"nonsense\n", "what nobody understands"),
        (b'{"check":"teeth"}\n', "what nobody understands"),
        (b"x" * 200_000, "what nobody understands"),
    ],
)
async def test_a_peer_that_is_no_doctor(said: bytes, why: str) -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(said)
        writer.close()

    async with listening(peer) as path:
        with pytest.raises(NoDoctor, match=why):
            await visit(path)


@given(st.text(max_size=300))
def test_a_question_has_a_short_host_or_none(host: str) -> None:
    encoded = msgspec.json.encode({"host": host})
    if 1 <= len(host) <= 253:
        assert msgspec.json.decode(encoded, type=Question).host == host
    else:
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(encoded, type=Question)


def test_which_interface_is_which_port() -> None:
    ports = [
        NetworkPort(role=role, interface=interface, kind="ethernet", state=PortState.UP)
        for role, interface in (("primary", "eth0"), ("", "eth1"), ("wifi", ""), ("20", "eth0.20"))
    ]
    state = NetworkState(request_id="r", managed=True, mode="server", ports=ports)
    assert roles_of(state) == {"eth0": Role.PRIMARY}
