"""Lines broken between words, for a screen that would break them anywhere."""

from __future__ import annotations

from collections.abc import Callable

from rich.cells import cell_len


class Folding:
    """Writes text that comes in pieces. A word is held back until its end is known: until the space after it, or `flush`."""

    def __init__(self, write: Callable[[str], None], columns: Callable[[], int], *, column: int = 0) -> None:
        """`columns` is the width of the screen, at least 2, asked for at each word; `column` is where the cursor stands."""
        self._write, self._columns, self._column = write, columns, column
        self._spaces, self._word = "", ""

    def __call__(self, text: str) -> None:
        for sign in text:
            if sign in " \t\n":
                self._end_word()
                if sign == "\n":
                    self._write("\n")
                    self._column, self._spaces = 0, ""
                else:
                    self._spaces += " "
            else:
                self._word += sign

    def flush(self) -> None:
        """Nothing is held back any more."""
        self._end_word()
        self._write(self._spaces)
        self._column, self._spaces = self._column + len(self._spaces), ""

    def _end_word(self) -> None:
        if not self._word:
            return
        width = cell_len(self._word)
        # The last column stays free: some terminals go on to the next line as soon as it is written.
        if self._column and self._column + len(self._spaces) + width >= self._columns():
            self._write("\n" + self._word)
            self._column = width
        else:
            self._write(self._spaces + self._word)
            self._column += len(self._spaces) + width
        self._spaces, self._word = "", ""


def folded(text: str, columns: int) -> str:
    """All of a text at once."""
    pieces: list[str] = []
    folding = Folding(pieces.append, lambda: columns)
    folding(text)
    folding.flush()
    return "".join(pieces)
