"""A text that comes in pieces, read by generators that pause where more of it is needed.

A reader is written as if all text were here, `name = yield from source.until("(")`, and driven by
`runtime/answers/parser.py`, which goes on with it when more has come. Blanks count little: where a form has some, a
model may write others or none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]
"""A reader: pauses by `yield` until more text is here, and returns what it has read."""

_BLANKS = re.compile(r"\s+")


def _nothing() -> None:
    """Nothing is to be done before a pause."""


class Malformed(Exception):
    """The text is not what the reader expects."""


class Incoming:
    """Text with a position; `ended` when no more will come."""

    def __init__(self, text: str = "") -> None:
        self.text = text
        self.at = 0
        self.ended = False
        # Called before a reader pauses.
        self.on_pause: Callable[[], None] = _nothing

    def has(self, count: int) -> Reading[bool]:
        """Whether `count` characters follow the position."""
        while len(self.text) - self.at < count:
            if self.ended:
                return False
            self.on_pause()
            yield
        return True

    def peek(self) -> Reading[str]:
        """The next character; empty at the end."""
        return self.text[self.at] if (yield from self.has(1)) else ""

    def take(self) -> Reading[str]:
        """The next character. Raises Malformed at the end."""
        if not (yield from self.has(1)):
            raise Malformed
        self.at += 1
        return self.text[self.at - 1]

    def blanks(self) -> Reading[None]:
        """Pass over blanks."""
        while (yield from self.has(1)) and self.text[self.at].isspace():
            self.at += 1

    def literal(self, wanted: str) -> Reading[None]:
        """Pass over `wanted`, blanks around it and other blanks in it. Raises Malformed for anything else."""
        if not (yield from self.follows(wanted)):
            raise Malformed

    def follows(self, wanted: str, *, may_end: bool = False, blanks: bool = True) -> Reading[bool]:
        """Whether `wanted` comes next, which is passed over then; else nothing is. Blanks count as in `literal`.

        With `may_end` an end of the text within `wanted` counts as the whole of it. Without `blanks` those after it
        stay, so that this does not wait for what follows.
        """
        start = self.at
        words = _BLANKS.split(wanted.strip())
        for word in words:
            yield from self.blanks()
            for letter in word:
                following = yield from self.peek()
                if not following and may_end:
                    return True
                if following != letter:
                    self.at = start
                    return False
                self.at += 1
        if wanted[-1:].isspace() and words[-1][-1:].isalnum() and not (yield from self.peek()).isspace():
            self.at = start
            return False
        if blanks:
            yield from self.blanks()
        return True

    def until(self, mark: str, limit: int | None = None) -> Reading[str]:
        """The text before the next `mark`, which is passed over. Raises Malformed where none comes in `limit`."""
        start = self.at
        while True:
            found = self.text.find(mark, self.at)
            end = found if found >= 0 else len(self.text)
            if limit is not None and end - start > limit + (0 if found >= 0 else len(mark)):
                raise Malformed
            if found >= 0:
                self.at = found + len(mark)
                return self.text[start:found]
            if self.ended:
                raise Malformed
            self.at = max(start, len(self.text) - len(mark) + 1)
            yield
