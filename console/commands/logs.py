"""`logs`: what the appliance said, and says."""

from __future__ import annotations

import asyncio
import codecs
import shutil
from collections.abc import Sequence

from appliance.client.screen import printable
from appliance.telemetry.log_file import follow, last_lines
from console.context import Context
from console.errors import CommandFailed

from .command import Command, wrong_usage

#: A screen of 24 lines, the prompt below it.
LINES = 22
LINES_LIMIT = 10_000

READ_BYTES = 65_536
PIECE_CHARS = 2048


async def run(context: Context, words: Sequence[str]) -> None:
    """As journalctl(1) has them: -f, -n LINES."""
    lines, following, left = LINES, False, list(words)
    while left:
        match left.pop(0):
            case "-f" | "--follow":
                following = True
            case "-n" | "--lines" if left and left[0].isdecimal() and int(left[0]) <= LINES_LIMIT:
                lines = int(left.pop(0))
            case _:
                raise wrong_usage(COMMAND)
    if context.system:
        await _journal(context, lines, following=following)
    else:
        await _file(context, lines, following=following)


async def _file(context: Context, lines: int, *, following: bool) -> None:
    """The log of `coral-reef run`."""
    path = context.paths.log_file
    say = _Speaker(context)
    await say(b"".join(await asyncio.to_thread(last_lines, path, lines)))
    if not following:
        return
    ended = False
    added = follow(path, lambda: ended)
    try:
        while True:
            await say(await asyncio.to_thread(next, added, b""))
    finally:
        ended = True  # the thread that still looks, looks once more


async def _journal(context: Context, lines: int, *, following: bool) -> None:
    program = shutil.which("journalctl")
    if program is None:
        raise CommandFailed("there is no journalctl here")
    words = ["--unit=coral-reef*", "--no-pager", "--quiet", f"--lines={lines}"]
    process = await asyncio.create_subprocess_exec(
        program,
        *(words + ["--follow"] * following),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    say = _Speaker(context)
    try:
        while data := await process.stdout.read(READ_BYTES):
            await say(data)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


class _Speaker:
    """Shows a log in pieces that a slow line takes, wherever its bytes were cut."""

    def __init__(self, context: Context) -> None:
        self._terminal = context.terminal
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    async def __call__(self, data: bytes) -> None:
        text = printable(self._decoder.decode(data))
        for at in range(0, len(text), PIECE_CHARS):
            await self._terminal.line.room()
            self._terminal.write(text[at : at + PIECE_CHARS])


def complete(_words: Sequence[str], _known: object) -> Sequence[str]:
    return "-f", "-n"


COMMAND = Command(
    "logs",
    "what the appliance says",
    (
        ("logs [-n LINES]", f"the newest lines, {LINES} unless said otherwise"),
        ("logs -f", "goes on with what comes, until Ctrl-C"),
    ),
    run,
    complete,
)
