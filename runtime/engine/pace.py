"""How much of a prompt to compute beside running answers, so that these do not stutter.

The setting `gap` is the dial: how many times as long as usual a token may take while prompts come in. Less keeps
answers smooth and lets newcomers wait; more lets them in sooner, and shows. Nothing is held back when no answer is
running; where more wait for their first token than are answered, a token may take longer in that proportion.

Long prompts are read between the steps, in turns (`runtime/engine/prefill.py`): a turn takes what the dial leaves
beside a step, and at a gap of g a prompt takes g / (g - 1) times as long as alone. Few tokens go into the steps
themselves. So do long prompts where turns are not possible, and since rows in a step of answers are dear it may then
take `PATIENCE` times as long as the dial says. Measured on two processors with AVX-512 (1.1 B at Q4_K_M, one row takes
21 to 29 ms): steps of 4 rows take 3 times the usual, and the first token of a prompt of 900 words 4 times as long as
alone; 8 rows 6 and 3, 16 rows 9 and 2: from there on kernels work at full width. In turns, by the same measures: a gap
of 3.5 gives 3.7 at the 99th percentile and 1.6 to 1.9, a gap of 4 gives 4.9 and 1.5. Both at the same time with a
thread each would give 1.9 and 2.0, but leaves no dial, and one processor has no halves.

What a step takes is no straight line: the first few rows cost most, and kernels work on rows in fours and sixteens. So
sizes are few, and what each takes is learned from the steps themselves, from the smallest upwards.
"""

from __future__ import annotations

# How many times that a step with rows of prompts may take where long ones cannot be read in turns.
PATIENCE = 3.0
SIZES = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_WEIGHT = 0.3
# Turns between steps: in usual steps at least, and in seconds where no answer waits.
_LEAST, _ALONE = 0.5, 0.1
# How much faster a size that was too slow is taken to be after every step without it, so that it is tried again.
_FORGIVING = 0.997


class Pace:
    """Learns what steps take. A size is all rows of a step, those of answers and those of prompts."""

    def __init__(self, batch: int, gap: float) -> None:
        """At most `batch` rows fit into a step."""
        self._batch = batch
        self._gap = gap
        self._usual: dict[int, float] = {}
        self._mixed: dict[int, float] = {}
        # Another speed than before is the machine's, for all sizes: what `_mixed` holds is to be multiplied by this.
        self._scale = 1.0

    def turn(self, answering: int, reading: int = 1) -> float:
        """Seconds that `answering` answers may wait between two steps, where `reading` prompts are to be read."""
        if not answering:
            return _ALONE
        return max(_LEAST, self._gap * max(1.0, reading / answering) - 1) * self._step(answering)

    def budget(self, answering: int, reading: int = 1, patience: float = 1.0) -> int:
        """Rows of prompts for a step with `answering` running answers, where `reading` prompts are to be read; it may
        take `patience` times as long as the dial says."""
        room = self._batch - answering
        if not answering or room <= 0:
            return room
        usual = self._step(answering)
        limit = self._gap * patience * usual * max(1.0, reading / answering)
        known, best = [(answering, usual)], 0
        for size in SIZES:
            if size < answering + SIZES[0] - 1:
                continue
            bold = size > 2 * max(known[-1][0], SIZES[0])
            if best and (bold or not usual or self._expected(size, known) > limit):
                break
            best = size
            if size in self._mixed:
                known.append((size, self._mixed[size] * self._scale))
        return min(best - answering, room) if best else room

    def note(self, answering: int, prompt_rows: int, seconds: float, *, calm: bool = True) -> None:
        """A step took `seconds`; one that is not `calm` comes after a turn of another prompt, and is no usual one."""
        size = answering + prompt_rows
        if not prompt_rows and not calm and answering in self._usual:
            return
        if not prompt_rows:
            before = self._usual.get(answering, seconds)
            self._usual[answering] = before + _WEIGHT * (seconds - before)
            self._scale *= self._usual[answering] / before
        elif answering and size in SIZES:
            before = self._mixed.setdefault(size, seconds / self._scale) * self._scale
            self._scale *= 1 + _WEIGHT * (seconds / before - 1)
            for larger in self._mixed:
                if larger > size:
                    self._mixed[larger] *= _FORGIVING

    def _step(self, answering: int) -> float:
        """What a step of answers alone takes: as was seen, else in proportion to steps of about as many rows."""
        if answering in self._usual:
            return self._usual[answering]
        seen = {size: seconds * self._scale for size, seconds in self._mixed.items()} | self._usual
        below = max((size for size in seen if size <= answering), default=0)
        above = min((size for size in seen if size >= answering), default=0)
        if not (below and above):
            known = below or above
            return seen[known] * answering / known if known else 0.0
        share = (answering - below) / (above - below) if above > below else 0.0
        return seen[below] + share * (seen[above] - seen[below])

    def _expected(self, size: int, known: list[tuple[int, float]]) -> float:
        """What a step of `size` rows will take: as it did, else rows beyond those known cost half of the last ones."""
        (below_rows, below), (rows, seconds) = known[-2:] if len(known) > 1 else ((0, 0.0), known[-1])
        if size in self._mixed:
            return min(self._mixed[size] * self._scale, seconds * size / rows)
        return seconds + max(0.0, seconds - below) / max(1, rows - below_rows) / 2 * (size - rows)
