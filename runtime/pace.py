"""How much of a prompt to compute beside running answers, so that these do not stutter.

A step that carries only running answers takes a certain time; every row of a prompt in it adds to that. The dial `GAP`
says how many times the usual step a step may take while prompts come in: 2 keeps answers smooth and makes newcomers
wait, 8 lets them in twice as fast and shows. Nothing is held back when no answer is running.
"""

from __future__ import annotations

GAP = 4.0
SMALLEST = 8
_WEIGHT = 0.2


class Pace:
    """Learns the cost of steps from the steps themselves."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._step = 0.0
        self._row = 0.0

    def budget(self, answering: int) -> int:
        """Rows of prompts for a step with `answering` running answers."""
        room = self._batch - answering
        if not answering or not self._step or not self._row:
            return room if not answering else min(room, 4 * SMALLEST)
        return max(SMALLEST, min(room, int((GAP - 1.0) * self._step / self._row)))

    def note(self, answering: int, prompt_rows: int, seconds: float) -> None:
        """A step took `seconds`."""
        if not prompt_rows:
            self._step = _mix(self._step, seconds)
        elif prompt_rows >= SMALLEST:
            base = self._step if answering else 0.0
            self._row = _mix(self._row, max(seconds - base, seconds / 4) / prompt_rows)


def _mix(average: float, value: float) -> float:
    return value if not average else average + _WEIGHT * (value - average)
