"""Breaking an answer between words while it comes, letter by letter, at the width of the terminal."""

from __future__ import annotations

from cli.console import width as width_of

NARROWEST = 20  # columns; below that, the terminal breaks lines as it likes
_FENCE = "```"  # code is left as it is: whoever copies it wants no more line feeds than it has


class Wrapping:
    """Lines of one answer, as far as they have come."""

    def __init__(self) -> None:
        self._column = 0
        self._word = ""
        self._fenced = False

    def feed(self, text: str, columns: int) -> str:
        """The text to write for the next piece of the answer, on a terminal of this many columns.

        A word that turns out too long for its line is taken back and written on the next one. The last column stays
        free: a terminal whose cursor stands behind it moves back from there by one too many.
        """
        return "".join(self._letter(letter, columns - 1) for letter in text)

    def _letter(self, letter: str, room: int) -> str:
        if letter == "\n":
            self._column, self._word = 0, ""
            return letter
        width = 8 - self._column % 8 if letter == "\t" else width_of(letter)
        before = ""
        if self._column + width > room and not self._fenced and room >= NARROWEST:
            if letter.isspace():  # the line feed takes its place
                return self._letter("\n", room)
            before = self._break()
        self._column += width
        self._word = "" if letter.isspace() or width > 1 else self._word + letter
        self._fenced ^= self._word == _FENCE and self._column == len(_FENCE)
        return before + letter

    def _break(self) -> str:
        """Begin a line. The unfinished word moves to it, unless that word fills the whole present line."""
        width = width_of(self._word)
        if width == self._column:
            self._word, width = "", 0
        self._column = width
        return f"\x1b[{width}D\x1b[K\n{self._word}" if width else "\n"
