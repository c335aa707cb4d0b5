"""A whole appliance for a benchmark, and a client that costs little."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

START_TIMEOUT_S = 60.0


def processes_of(root: int) -> dict[int, str]:
    """A process and all its descendants by id, with their titles."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text("ascii", "replace").rpartition(")")[2].split()
                parents[int(entry.name)] = int(fields[1])
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    titles = {}
    for pid in found:
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
            titles[pid] = words.decode(errors="replace").strip()
    return titles


def cpu_s(pid: int) -> float:
    """User and system time that a process has used. proc(5), stat."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_bytes(pid: int) -> int:
    """Resident set of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass
class Answer:
    """One reply: its length, and when its first text came."""

    session_id: str
    tokens: int
    first_token_s: float


class RunningAppliance:
    """`coral-reef run` on a free port with its own state; a context manager."""

    def __init__(
        self,
        configuration: str = "",
        model: Callable[[Path], object] | None = None,
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._environment = environment
        self.state = Path(tempfile.mkdtemp(prefix="bench-"))
        (self.state / "etc").mkdir()
        (self.state / "etc/appliance.toml").write_text(configuration, "utf-8")
        if model is not None:
            model(self.state / "models")
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.start_s = 0.0

    def __enter__(self) -> RunningAppliance:
        began = time.perf_counter()
        log = (self.state / "log").open("wb")
        with log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "appliance", "run", "--state", str(self.state), "--port", "0"],
                stdout=log,
                stderr=log,
                env=self._environment,
            )
        url = self.state / "run/url"
        while not (url.exists() and self._ready()):
            if self._process.poll() is not None or time.perf_counter() - began > START_TIMEOUT_S:
                raise RuntimeError((self.state / "log").read_text("utf-8", "replace"))
            time.sleep(0.002)
        self.start_s = time.perf_counter() - began
        self.headers = f"Authorization: Bearer {(self.state / 'admin.key').read_text('ascii').strip()}\r\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(30)
        shutil.rmtree(self.state, ignore_errors=True)

    def _ready(self) -> bool:
        self.port = int((self.state / "run/url").read_text("ascii").strip().rpartition(":")[2])
        return asyncio.run(self._healthy())

    async def _healthy(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.write(b"GET /health HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
        head = await reader.read(-1)
        writer.close()
        return head.startswith(b"HTTP/1.1 200")

    def processes(self) -> dict[int, str]:
        """Its processes by id, with their titles."""
        assert self._process is not None
        return processes_of(self._process.pid)

    def cpu_s(self) -> float:
        """What all its processes have used."""
        return sum(cpu_s(pid) for pid in self.processes())

    def memory(self) -> Iterator[tuple[str, int]]:
        """Each process with its resident set."""
        for pid, title in sorted(self.processes().items()):
            yield title, rss_bytes(pid)

    async def ask(self, message: str, *, max_tokens: int, seed: int, session_id: str | None = None) -> Answer:
        """One streamed reply."""
        began = time.perf_counter()
        first, seen = 0.0, b""
        async for piece in self.stream(message, max_tokens=max_tokens, seed=seed, session_id=session_id):
            if not first and b'"type":"token"' in piece:
                first = time.perf_counter() - began
            seen = (seen if len(seen) < 4096 else seen[:2048] + seen[-2048:]) + piece
        done = seen.rpartition(b'{"type":"done"')[2]
        if not done:
            raise RuntimeError(f"no end of the reply: {seen[-500:]!r}")
        payload = json.loads(b'{"type":"done"' + done.partition(b"\n")[0])["payload"]
        session = seen.partition(b'"session_id":"')[2].partition(b'"')[0].decode()
        return Answer(session, int(payload["usage"]["completion_tokens"]), first)

    async def stream(
        self, message: str, *, max_tokens: int, seed: int, session_id: str | None = None
    ) -> AsyncIterator[bytes]:
        """What comes over the wire for a streamed reply, piece by piece."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        try:
            writer.write(
                self.request(
                    "/api/v1/chat/stream",
                    chat_body(message, max_tokens=max_tokens, seed=seed, session_id=session_id),
                )
            )
            while piece := await reader.read(65_536):
                yield piece
        finally:
            writer.close()

    def request(
        self, path: str, body: bytes = b"", *, method: str = "POST", connection: str = "close"
    ) -> bytes:
        """A request with the administrator's key."""
        content = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\n{self.headers}Connection: {connection}\r\n{content}\r\n"
        return head.encode() + body


def chat_body(message: str, *, max_tokens: int, seed: int, session_id: str | None = None) -> bytes:
    """A question whose reply is as long as it may be, and drawn so that every seed gives another."""
    body: dict[str, Any] = {"persona_id": "coral", "message": message, "max_tokens": max_tokens}
    body |= {"seed": seed, "temperature": 1.0, "top_p": 1.0}
    return json.dumps(body | ({"session_id": session_id} if session_id else {})).encode()
