"""Which adapters the next step is computed with, where answers with different ones run side by side.

llama.cpp sets adapters for a whole context, so that a step has answers of one set of adapters alone. The sets take
turns of some steps. A change of adapters makes llama.cpp plan its graphs anew: a turn lasts long enough for that to
take a twentieth of the time at most, as the last changes have shown, and no longer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from runtime.messages import AdapterSet

# A change of adapters may take this part of the time.
_SHARE = 0.05
# Steps of a turn at most, and before any change was measured.
_MOST, _FIRST = 16, 4
# The weight of the newest measurement.
_NEWEST = 0.25


class Turns:
    """Whose turn it is. `now` is the set of adapters of the last step that was chosen, `steps` the length of a turn."""

    def __init__(self) -> None:
        self.now: AdapterSet = ()
        self.steps = _FIRST
        self._done = 0
        """Steps of the present turn so far."""
        self._served: dict[AdapterSet, int] = {}
        self._clock = 0
        self._first: tuple[int, float] | None = None
        self._cost = self._usual = 0.0

    def choose(self, wanted: Iterable[AdapterSet]) -> AdapterSet:
        """The set for the next step, of those `wanted`, at least one: the present one, or the longest unserved."""
        present = set(wanted)
        self._clock += 1
        if self.now not in present or (self._done >= self.steps and len(present) > 1):
            self._served = {key: at for key, at in self._served.items() if key in present}
            self.now = min(present, key=lambda key: (self._served.get(key, -1), key))
            self._done = 0
        self._done += 1
        self._served[self.now] = self._clock
        return self.now

    def note(self, rows: int, seconds: float) -> None:
        """Learn from a step: the first of a turn against the second, where both have as many rows."""
        if self._done == 1:
            self._first = rows, seconds
        elif self._done == 2 and self._first and self._first[0] == rows and self._clock > 2:
            self._cost += _NEWEST * (max(0.0, self._first[1] - seconds) - self._cost)
            self._usual += (_NEWEST if self._usual else 1.0) * (seconds - self._usual)
            self.steps = max(1, min(_MOST, math.ceil(self._cost / (_SHARE * self._usual)))) if self._usual else _FIRST
