"""How many rows of prompts a step takes beside running answers, so that these do not stutter.

The setting `gap` is the dial: how many times as long as usual a step of answers may take while prompts are read. A
small gap keeps answers smooth and lets new requests wait. A large one lets them in sooner, and answers stutter. Prompts
are not held back when no answer is running. Where more requests wait for their first token than are answered, a step
may take longer in that proportion.

Long prompts are read between the steps, in slices of time (`runtime/engine/prefill.py`). A slice takes the time that
the dial leaves beside a step. At a gap of g a prompt so takes g / (g - 1) times as long as alone. A few tokens are
read in the steps themselves, as are long prompts where slices are not possible. Rows in a step of answers are
expensive, so a step may then take `PATIENCE` times as long as the dial says.

Measured on two processors with AVX-512 (1.1 B parameters at Q4_K_M, one row takes 21 to 29 ms). "Step" is the length of
a step in usual steps; "first" is the time to the first token of a prompt of 900 words, divided by that time alone.

| prompts | step | first |
|---|---|---|
| in steps, 4 rows each | 3 | 4 |
| in steps, 8 rows each | 6 | 3 |
| in steps, 16 rows each | 9 | 2 |
| in slices, gap 3.5 | 3.7 (99th percentile) | 1.6 to 1.9 |
| in slices, gap 4 | 4.9 (99th percentile) | 1.5 |
| at the same time, a thread for each | 1.9 | 2.0 |

From 16 rows on kernels work at full width. The way of the last row has no dial, and needs two processors.

A step's time does not grow evenly with its rows: the first few cost most, and kernels work on rows in fours and
sixteens. So few sizes are used, and the time of each is learned from the steps themselves, the smallest first.
"""

from __future__ import annotations

# How many times as long as the dial says a step may take where long prompts cannot be read in slices.
PATIENCE = 3.0
# Rows of a step, answers and prompts together, that are tried.
SIZES = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# Weight of the newest measurement in a moving average.
_WEIGHT = 0.3
# The shortest slice, in usual steps; and the length of one in seconds where no answer waits.
_LEAST_STEPS, _ALONE_SECONDS = 0.5, 0.1
# Where steps of one size alone are known: the share of a row's time that a further row is taken to cost.
_BOLD = 0.125
# After each step the times of larger sizes are taken to be shorter by this factor, so that a size that was too slow
# once is tried again.
_FORGIVING = 0.997
# The same for steps of answers and their drafts, by the steps since the size was measured, but not below this factor.
_MOST_FORGIVEN = 0.5


class Pace:
    """Learns how long steps take. A size is the number of all rows of a step, answers and prompts."""

    def __init__(self, batch: int, gap: float) -> None:
        """At most `batch` rows fit into a step; `gap` is the dial."""
        self._batch = batch
        self.gap = gap
        self._usual: dict[int, float] = {}
        """Seconds of steps without prompts, by size."""
        self._noted: dict[int, int] = {}
        """The step that was noted last, by size of steps without prompts."""
        self._steps = 0
        self._mixed: dict[int, float] = {}
        """Seconds of steps with prompts, by size, to be multiplied by `_scale`."""
        # When the machine becomes slower or faster, all sizes do: one factor changes them together.
        self._scale = 1.0

    def side_seconds(self, answering: int, reading: int = 1) -> float:
        """Seconds that `answering` answers may wait between two steps while `reading` prompts are to be read."""
        if not answering:
            return _ALONE_SECONDS
        return max(_LEAST_STEPS, self.gap * max(1.0, reading / answering) - 1) * self._usual_seconds(answering)

    def budget(self, answering: int, reading: int = 1, patience: float = 1.0) -> int:
        """Rows of prompts for a step with `answering` running answers, while `reading` prompts are to be read.

        The step may take `patience` times as long as the dial says.
        """
        room = self._batch - answering
        if not answering or room <= 0:
            return room
        usual = self._usual_seconds(answering)
        limit = self.gap * patience * usual * max(1.0, reading / answering)
        known, best = [(answering, usual)], 0
        for size in SIZES:
            if size < answering + SIZES[0] - 1:
                continue
            # More than twice the largest size with a known time: a guess would be bold.
            bold = size > 2 * max(known[-1][0], SIZES[0])
            if best and (bold or not usual or self._expected(size, known) > limit):
                break
            best = size
            if size in self._mixed:
                known.append((size, self._mixed[size] * self._scale))
        return min(best - answering, room) if best else room

    def answer_seconds(self, rows: int) -> float:
        """Seconds of a step of `rows` without prompts: answers' tokens, and drafts. 0.0 where nothing is known.

        As measured, else between the sizes next to it. Beyond the largest size each further row costs half as much as
        before, and next to nothing where one size alone is known, so that larger sizes are tried.
        """
        if rows in self._usual:
            forgiven = _FORGIVING ** (self._steps - self._noted[rows]) if rows > 1 else 1.0
            return self._usual[rows] * max(_MOST_FORGIVEN, forgiven)
        below = max((size for size in self._usual if size < rows), default=0)
        above = min((size for size in self._usual if size > rows), default=0)
        if not below:
            return self._usual[above] if above else 0.0
        seconds = self._usual[below]
        if above:
            return seconds + (rows - below) / (above - below) * (self._usual[above] - seconds)
        before = max((size for size in self._usual if size < below), default=0)
        if not before:  # nobody knows what a further row costs; where that is too bold, the first such step shows it
            return seconds * (1 + _BOLD * (rows - below) / below)
        slope = (seconds - self._usual[before]) / (below - before)
        return seconds + max(0.0, slope) / 2 * (rows - below)

    def note(self, answering: int, prompt_rows: int, seconds: float, *, calm: bool = True) -> None:
        """Learn that a step took `seconds`.

        A step that is not `calm` comes after a slice of a prompt: caches are cold, so it is no usual step.
        """
        size = answering + prompt_rows
        if not prompt_rows and not calm and answering in self._usual:
            return
        if not prompt_rows:
            self._steps += 1
            self._noted[answering] = self._steps
            before = self._usual.get(answering, seconds)
            self._usual[answering] = before + _WEIGHT * (seconds - before)
            self._scale *= self._usual[answering] / before
        elif answering and size in SIZES:
            before = self._mixed.setdefault(size, seconds / self._scale) * self._scale
            self._scale *= 1 + _WEIGHT * (seconds / before - 1)
            for larger in self._mixed:
                if larger > size:
                    self._mixed[larger] *= _FORGIVING

    def _usual_seconds(self, answering: int) -> float:
        """How long a step of answers alone takes: as measured, else between the sizes next to it."""
        if answering in self._usual:
            return self._usual[answering]
        measured = {size: seconds * self._scale for size, seconds in self._mixed.items()} | self._usual
        below = max((size for size in measured if size <= answering), default=0)
        above = min((size for size in measured if size >= answering), default=0)
        if not (below and above):
            nearest = below or above
            return measured[nearest] * answering / nearest if nearest else 0.0
        share = (answering - below) / (above - below) if above > below else 0.0
        return measured[below] + share * (measured[above] - measured[below])

    def _expected(self, size: int, known: list[tuple[int, float]]) -> float:
        """How long a step of `size` rows will take. `known` are smaller sizes and their seconds, in order.

        As measured, but at most in proportion to the largest known size. Without a measurement each further row costs
        half as much as a row between the last two known sizes.
        """
        (below_rows, below), (rows, seconds) = known[-2:] if len(known) > 1 else ((0, 0.0), known[-1])
        if size in self._mixed:
            return min(self._mixed[size] * self._scale, seconds * size / rows)
        return seconds + max(0.0, seconds - below) / max(1, rows - below_rows) / 2 * (size - rows)
