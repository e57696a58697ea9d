"""From the bytes of tokens to text that can be shown: no torn character, and no part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Stops:
    """The stop strings of a request, prepared for searching in growing text."""

    def __init__(self, strings: Sequence[str]) -> None:
        """Empty strings are ignored."""
        self.strings = [string for string in strings if string]
        self._starts = frozenset(string[:end] for string in self.strings for end in range(1, len(string)))
        self._first = frozenset(string[0] for string in self.strings)
        self._longest = max(map(len, self.strings), default=0)

    def find(self, text: str) -> tuple[int, str]:
        """The offset of the first stop string in `text`, and that string; -1 and "" when there is none."""
        hits = [(at, -len(string), string) for string in self.strings if (at := text.find(string)) >= 0]
        if not hits:
            return -1, ""
        at, _, string = min(hits)
        return at, string

    def tail_length(self, text: str) -> int:
        """How many characters at the end of `text` could be the beginning of a stop string."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._first and text[start:] in self._starts:
                return len(text) - start
        return 0


class Assembler:
    """One answer's text as it grows. `stop` is the stop string that ended it, "" so far."""

    def __init__(self, stops: Stops) -> None:
        self._stops = stops
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._tail = ""  # text that is not shown yet
        self.stop = ""

    def push(self, piece: bytes) -> str:
        """Append a token's bytes; the text that can be shown now.

        Half a character and what could still become a stop string are held back. An example with the stop string
        `END`: pushing "The E" gives "The ", pushing "x" then gives "Ex".
        """
        text = self._decoder.decode(piece)
        if not self._stops.strings:
            return text
        if self._tail:
            text = self._tail + text
        at, self.stop = self._stops.find(text)
        if self.stop:
            self._tail = ""
            return text[:at]
        length = self._stops.tail_length(text)
        self._tail = text[len(text) - length :]
        return text[: len(text) - length]

    def finish(self) -> str:
        """At the end of the answer: the text that was held back, none of it after a stop string."""
        if self.stop:
            return ""
        text = self._tail + self._decoder.decode(b"", final=True)
        self._tail = ""
        return text
