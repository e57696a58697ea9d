"""Whether drafts pay, and how long they should be: by how many come true, and by what steps of each size cost here.

A draft of k tokens adds k rows to a step, which takes longer, and gives up to k tokens more. A token of it is taken
when all before it were. How often a token comes true depends most on how long the answer has followed the source
already: the rates are measured by that length, for each answer, and begin with what was measured for others.

The rows of all answers share a step. They are taken in the order of their chances, as many as give the most tokens per
second. A draft model's tokens cost steps of its own, which are counted before each of them is guessed.

Nothing is certain, so each answer has a credit too: what a draft costs when none of it comes true must be in
it, by the chance that this happens. An answer begins with little, earns what its drafts save, and a small share of
every step without one. So drafts that fail cost that share of its time and no more, and are tried again now and then.
A draft that is not computed costs nothing and still shows whether its first token comes true. Rates and credit learn
from it. So an answer that comes back to its source has drafts again some tokens later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import NamedTuple

# Chances with which a process begins. Tokens looked up: by the bits of the number of tokens that agree with the source
# already. Tokens of a draft model: by eighths of the probability that it gives them; and any token of it.
FIRST_LOOKED_UP = (0.5, 0.55, 0.65, 0.75, 0.82, 0.88, 0.92)
FIRST_PREDICTED = (0.6, 0.75, 0.82, 0.86, 0.9, 0.92, 0.94)
FIRST_GUESSED = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9)
FIRST_ANY = (0.7,)
# The weight of a rate of other answers, in tokens; and the share of an old token that each new one leaves over.
_WEIGHT, _FADING = 6.0, 0.96
# The same for the shared rates, which fade more slowly.
_SHARED_WEIGHT, _SHARED_FADING = 12.0, 0.99
# The share of a rate that is left after a step in which nothing was tried.
_GROWING_OLD = 0.998
# Credits, in usual steps: at first, for each step without a draft, and at most.
_FIRST_CREDIT, _INCOME, _MOST_CREDIT = 1.5, 0.008, 16.0
# A draft must give this many times the tokens per second to be tried.
_WORTH = 1.03


class DraftRates:
    """How often a drafted token comes true, by its place in a table of first guesses."""

    def __init__(self, first: Sequence[float], shared: DraftRates | None = None) -> None:
        """`first` are the chances before anything is known. `shared` rates are where an answer begins; they learn."""
        self._first, self._shared = first, shared
        self._tries = [0.0] * len(first)
        self._hits = [0.0] * len(first)

    def chance(self, place: int) -> float:
        """The chance of a token."""
        if self._shared is None:
            before, weight = self._first[place], _SHARED_WEIGHT
        else:
            before, weight = self._shared.chance(place), _WEIGHT
        return (self._hits[place] + weight * before) / (self._tries[place] + weight)

    def chances(self, places: Sequence[int]) -> list[float]:
        """For each token of a draft the chance that it and all before it come true."""
        return list(accumulate(map(self.chance, places), mul))

    def note(self, places: Sequence[int], accepted: int) -> None:
        """Learn that `accepted` tokens of a draft came true, and the next one did not."""
        fading = _SHARED_FADING if self._shared is None else _FADING
        for i, place in enumerate(places[: accepted + 1]):
            self._tries[place] = self._tries[place] * fading + 1
            self._hits[place] = self._hits[place] * fading + (i < accepted)
        if self._shared is not None:
            self._shared.note(places, accepted)

    def forget(self) -> None:
        """A step without a try: what is known grows old, so that a source that failed is tried again."""
        for rates in (self, self._shared):
            if rates is not None:
                rates._tries = [_GROWING_OLD * tries for tries in rates._tries]
                rates._hits = [_GROWING_OLD * hits for hits in rates._hits]


class Credit:
    """The cost that drafts of one answer may have, in usual steps."""

    def __init__(self) -> None:
        self.steps = _FIRST_CREDIT

    def wait(self) -> None:
        """A step without a draft."""
        self.steps = min(_MOST_CREDIT, self.steps + _INCOME)

    def settle(self, accepted: int, extra: float) -> None:
        """A step with one, which took `extra` usual steps more, and gave `accepted` tokens more."""
        self.steps = min(_MOST_CREDIT, self.steps + accepted - extra)

    def watch(self, hit: bool, extra: float) -> None:
        """A draft of one token, for `extra` usual steps, was not computed, and would have come true or not."""
        if hit:
            self.steps = max(self.steps, min(_FIRST_CREDIT, self.steps + 1 - extra))
        else:
            self.steps = min(self.steps, max(0.0, self.steps - extra))

    def affordable(self, length: int, extra: float, failing: float) -> int:
        """How many tokens of a draft of `length` may be tried; each costs `extra` usual steps.

        `failing` is the chance that none of them comes true.
        """
        cost = extra * failing
        return length if cost <= 0 or length * cost <= self.steps else max(0, int(self.steps / cost))


def best_lengths(
    chances: Sequence[Sequence[float]], plain: int, room: int, seconds: Callable[[int], float], longest: float = 0.0
) -> list[int]:
    """How many tokens of each draft to compute, `room` in all at most, so that tokens come fastest.

    `chances` has the result of `DraftRates.chances` for each draft, `plain` the rows of the step without drafts.
    `seconds` gives the length of a step by its rows, 0 where nothing is known. The step may take `longest` seconds, if
    that is not 0.
    """
    usual = seconds(plain)
    nothing = [0] * len(chances)
    if not usual:
        return nothing
    rows = sorted(((chance, number) for number, each in enumerate(chances) for chance in each), reverse=True)
    del rows[max(0, room) :]
    best, count, tokens = _WORTH * plain / usual, 0, float(plain)
    for extra, (chance, _) in enumerate(rows, 1):
        tokens += chance
        # Kernels take rows in fours. Between two such sizes the larger one is worth as much, or the last one is best.
        # Where a row costs most of a step, a draft of one token may be all that pays.
        if (plain + extra) % 4 and 1 < extra < len(rows):
            continue
        taken = seconds(plain + extra)
        if tokens / taken > best and (taken <= longest or not longest):
            best, count = tokens / taken, extra
    for _, number in rows[:count]:
        nothing[number] += 1
    return nothing


@dataclass(frozen=True)
class Prospect:
    """The promise of a draft model: to guess `count` tokens more for each draft, to write `gain` times as fast."""

    count: int
    gain: float


class Costs(NamedTuple):
    """Seconds of a step by its rows: of the model's own steps, and of the draft model's. 0 where nothing is known."""

    step: Callable[[int], float]
    guess: Callable[[int], float]


def prospect(
    drafts: Sequence[tuple[float, float]],
    tokens: float,
    rows: int,
    room: int,
    costs: Costs,
    spent: float = 0.0,
    longest: float = 0.0,
) -> Prospect:
    """How many tokens a draft model should guess for each of `drafts`, `room` in all at most.

    A draft is the chance that all its tokens come true so far, and the chance of any further one. The step would give
    `tokens` from `rows` without further ones. Guesses took `spent` seconds already. All of it may take `longest`
    seconds, if that is not 0.
    """
    usual, guess = costs.step(rows), costs.guess(len(drafts))
    if not (usual and drafts):
        return Prospect(0, 1.0)
    plain = tokens / (spent + usual)
    best, count = plain * (1 if spent else _WORTH), 0
    chances = [chance for chance, _ in drafts]
    for more in range(1, room // len(drafts) + 1):
        chances = [chance * rate for chance, (_, rate) in zip(chances, drafts, strict=True)]
        tokens += sum(chances)
        seconds = spent + costs.step(rows + more * len(drafts)) + more * guess
        if longest and seconds > longest:
            break
        if tokens / seconds > best:
            best, count = tokens / seconds, more
    return Prospect(count, best / plain if count else 1.0)
