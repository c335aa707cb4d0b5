"""The screen at the other end of a line: how large it is, whether it can move its cursor, and what is put on it."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Iterable

from prompt_toolkit.data_structures import Size
from prompt_toolkit.keys import Keys
from prompt_toolkit.output.color_depth import ColorDepth
from prompt_toolkit.output.vt100 import Vt100_Output
from rich.console import Console

from appliance.client import screen
from appliance.client.folding import folded
from appliance.client.screen import Part

from .keyboard import Keyboard
from .line import Line

#: A serial line cannot tell: what every terminal has.
ROWS, COLUMNS = 24, 80
LARGEST = 500

#: Asks for the cursor's place (DSR 6) in the lower right corner. What does not understand shows some signs, wiped out afterwards.
WHERE = "\x1b7\x1b[999;999H\x1b[6n\x1b8"
WIPE = "\r" + " " * len(WHERE) + "\r"
HERE = re.compile(r"\x1b\[(\d{1,3});(\d{1,3})R")

#: A terminal answers at once; this is for one behind a slow line and a busy program.
ANSWER_S = 0.7

_LONE_LINE_FEED = re.compile(r"(?<!\r)\n")


class _Stream:
    """A text stream without a descriptor: prompt_toolkit would set one back to blocking, and rich ask it for its size."""

    encoding, errors = "utf-8", "replace"

    def __init__(self, line: Line) -> None:
        self._line = line

    def write(self, text: str) -> int:
        self._line.write(_LONE_LINE_FEED.sub("\r\n", text).encode("utf-8", "replace"))
        return len(text)

    def flush(self) -> None:
        """What is written is on its way."""

    def isatty(self) -> bool:
        return True


class _Output(Vt100_Output):
    """Asks for no pastes in brackets: one would come as a single key, however long it is."""

    def enable_bracketed_paste(self) -> None:
        pass

    def disable_bracketed_paste(self) -> None:
        pass


class Terminal:
    """A person's screen and keys. `dumb` until `look` has found out otherwise."""

    def __init__(self, line: Line, keyboard: Keyboard) -> None:
        self.line, self.keyboard = line, keyboard
        self.dumb = True
        self.rows, self.columns = ROWS, COLUMNS
        self._stream = _Stream(line)

    def size(self) -> Size:
        """As the line knows it, else as the terminal has answered."""
        rows, columns = self.line.size
        return Size(rows=rows or self.rows, columns=columns or self.columns)

    async def look(self) -> None:
        """Finds out what the terminal can do and how large it is; what is typed meanwhile is kept."""
        answered: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()

        def read() -> None:
            for press in self.keyboard.peek():
                found = HERE.fullmatch(press.data) if press.key is Keys.CPRResponse else None
                if found and not answered.done():
                    answered.set_result((int(found[1]), int(found[2])))

        with self.keyboard.attach(read):
            self.write(WHERE + WIPE)
            try:
                rows, columns = await asyncio.wait_for(answered, ANSWER_S)
            except TimeoutError:
                self.dumb, self.rows, self.columns = True, ROWS, COLUMNS
                return
        self.dumb = False
        # A terminal of a few cells is one that jokes.
        self.rows = min(max(rows, ROWS // 2), LARGEST)
        self.columns = min(max(columns, COLUMNS // 2), LARGEST)

    def write(self, text: str) -> None:
        """Puts text on it as it is; a line feed begins a line."""
        self._stream.write(text)

    def say(self, text: str) -> None:
        """A line of text, or more."""
        self.write(f"{folded(text, self.size().columns)}\n")

    def show(self, parts: Iterable[Part]) -> None:
        """Draws lines and tables, folded between words."""
        self._draw(parts, self._stream)

    def drawn(self, parts: Iterable[Part]) -> list[str]:
        """The lines that `show` would draw, folded as the screen folds them."""
        page = io.StringIO()
        self._draw(parts, page)
        return page.getvalue().splitlines()

    def clear(self) -> None:
        """An empty screen, where the terminal has one."""
        self.write("\n" if self.dumb else "\x1b[2J\x1b[H")

    def output(self) -> Vt100_Output:
        """What prompt_toolkit draws on."""
        return _Output(
            self._stream,  # type: ignore[arg-type]
            self.size,
            term="vt100",
            default_color_depth=ColorDepth.DEPTH_4_BIT,
            enable_bell=False,
            enable_cpr=False,
        )

    def _draw(self, parts: Iterable[Part], page: _Stream | io.StringIO) -> None:
        size = self.size()
        canvas = Console(
            file=page,  # type: ignore[arg-type]
            width=size.columns,
            height=size.rows,
            force_terminal=not self.dumb,
            color_system=None if self.dumb else "standard",
            legacy_windows=False,
            highlight=False,
            _environ={},
        )
        for part in parts:
            canvas.print(screen.renderable(part))
