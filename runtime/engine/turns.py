"""Which adapters the next step is computed with, where answers with different ones run side by side.

llama.cpp sets adapters for a whole context, so that a step has answers of one set of adapters alone. The sets take
turns of some steps. A change of adapters makes llama.cpp plan its graphs anew: a turn lasts long enough for that to
take a twentieth of the time at most, as the last changes have shown, and no longer.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable

from runtime.messages import AdapterSet

# A change of adapters may take this part of the time.
_SHARE = 0.05
# Steps of a turn: at least two, because the second one shows what the first one would have taken without a change.
_LEAST, _FIRST, _MOST = 2, 6, 16
# The last measurements that count. The quickest of them is taken: a busy machine makes steps slower, never quicker.
_KEPT = 24
# Numbers of rows of which measurements are kept.
_MOST_SIZES = 64


class Turns:
    """Whose turn it is. `now` is the set of adapters of the last step that was chosen, `steps` the length of a turn."""

    def __init__(self) -> None:
        self.now: AdapterSet = ()
        self.steps = _FIRST
        self._done = 0
        """Steps of the present turn so far."""
        self._served: dict[AdapterSet, int] = {}
        self._clock = 0
        self._changed = False
        """Whether the present turn began with a change of adapters."""
        self._seconds: dict[tuple[int, bool], deque[float]] = defaultdict(lambda: deque(maxlen=_KEPT))
        """Seconds of the last steps by their number of rows: of second steps of a turn, and of first ones (True)."""

    def choose(self, wanted: Iterable[AdapterSet]) -> AdapterSet:
        """The set for the next step, of those `wanted`, at least one: the present one, or the longest unserved."""
        present = set(wanted)
        self._clock += 1
        if self.now not in present or (self._done >= self.steps and len(present) > 1):
            self._served = {key: at for key, at in self._served.items() if key in present}
            self.now = min(present, key=lambda key: (self._served.get(key, -1), key))
            self._done, self._changed = 0, True
        self._done += 1
        self._served[self.now] = self._clock
        return self.now

    def note(self, rows: int, seconds: float) -> None:
        """Learn from a step: the first ones of turns against the second ones of as many rows."""
        if not self._changed or self._done > 2:
            return
        self._seconds[rows, self._done == 1].append(seconds)
        first, second = self._seconds[rows, True], self._seconds[rows, False]
        if self._done == 2 and first:
            usual = min(second)
            cost = max(0.0, min(first) - usual)
            self.steps = max(_LEAST, min(_MOST, math.ceil(cost / (_SHARE * usual)))) if usual else _FIRST
        if len(self._seconds) > _MOST_SIZES:
            self._seconds.clear()
