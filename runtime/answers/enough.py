"""Whether an answer has all the calls that it may have: one where the request wants one, and none over and over."""

from __future__ import annotations

from collections import Counter

from runtime.answers.pieces import Arguments, CallBegun, CallEnded, Piece

# A small model that may go on calling often repeats one call until the context is full. Dice are thrown less often.
MOST_ALIKE = 16


class Enough:
    """The calls of one answer so far. `reached` when no further one is wanted."""

    def __init__(self, *, single: bool) -> None:
        """With `single` one call is enough."""
        self._most = 1 if single else MOST_ALIKE
        self._call = ""
        self._alike: Counter[str] = Counter()
        self.reached = False

    def note(self, piece: Piece) -> None:
        """The next piece of the answer."""
        match piece:
            case CallBegun():
                self._call = f"{piece.name} "
            case Arguments():
                self._call += piece.text
            case CallEnded():
                self._alike[self._call] += 1
                self.reached = self._alike[self._call] >= self._most
