"""Which level to try next, and which one is the best, from predictions and from what was measured.

Some things are taken for granted, and said in the reasons. A file's size is known before it is made. Its memory is
predicted within 5 %, its speed within a factor of two; and within a quarter once one level was measured, because the
error is then the same for all. Among levels of one kind of making, a larger file has no larger KL divergence, unless
their sizes are within 3 % of each other. A level of which parts were cut has no smaller divergence than the whole one.

So most levels need not be made. One that is smaller than the best so far cannot have a smaller divergence. One that is
larger than a level that is too slow is too slow too.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from server.tuning.goals import METRICS, Figures, Goals, shown

Act = Literal["speed", "quality"]
_NEAR, _ALIKE = 1.05, 1.03
_UNSURE, _SURE = 2.0, 1.25
# Figures that a file's size decides: among levels that are cut alike, and, but for speeds, among all.
_WITH_SIZE = {name for name, metric in METRICS.items() if metric.source != "quality"}
_SPEEDS = {name for name, metric in METRICS.items() if metric.unit == "tokens/s"}


@dataclass(frozen=True)
class TuneLevel:
    """A level that may be tried, whole, or without the parts that `cut` names.

    `predicted` has its `size` in bytes, and `memory` and `tokens/s` where these are known. `whole` is the size of the
    level without a cut, 0 where nothing is cut.
    """

    level: str
    predicted: Mapping[str, float]
    cut: str = ""
    whole: float = 0.0

    @property
    def name(self) -> str:
        """Its name in tables and records."""
        return f"{self.level} without {self.cut}" if self.cut else self.level


@dataclass
class Trial:
    """A level with the figures that are known of it. `recorded` where they come from an earlier tune.

    `fault` says why it cannot be made, "" where it can.
    """

    candidate: TuneLevel
    figures: dict[str, float] = field(default_factory=dict)
    recorded: bool = False
    fault: str = ""

    @property
    def cut(self) -> str:
        """The parts that are cut."""
        return self.candidate.cut

    @property
    def size(self) -> float:
        """Bytes of the file, as measured or as predicted."""
        return self.figures.get("size", self.candidate.predicted["size"])

    @property
    def whole(self) -> float:
        """Bytes of the level before anything was cut: the larger, the smaller is its divergence."""
        return self.candidate.whole or self.size


@dataclass(frozen=True)
class Move:
    """The next step: the name of a level whose speed or quality is to be measured, and the reason."""

    name: str
    act: Act
    why: str


class Search:
    """A tune in progress; ask `next`, measure, `add`, until there is none."""

    def __init__(self, goals: Goals, candidates: Iterable[TuneLevel], known: Mapping[str, Figures]) -> None:
        """`known` are figures of earlier tunes, by names of levels."""
        self.goals = goals
        self.trials = {each.name: Trial(each) for each in sorted(candidates, key=lambda c: -c.predicted["size"])}
        for name, figures in known.items():
            if trial := self.trials.get(name):
                trial.figures.update(figures)
                trial.recorded = bool(figures)

    def add(self, name: str, figures: Figures) -> None:
        """Note what was measured of a level."""
        self.trials[name].figures.update(figures)
        self.trials[name].recorded = False

    def give_up(self, name: str, fault: str) -> None:
        """Note that a level cannot be made, and why."""
        self.trials[name].fault = fault

    def next(self) -> Move | None:
        """The next step; None where no other level can be the best."""
        open_ones = [trial for trial in self.trials.values() if not self.lost(trial) and self._unknown(trial)]
        if not open_ones:
            return None
        begun = [trial for trial in open_ones if trial.figures]
        trial = begun[0] if begun else self._promising(open_ones)
        act = self._unknown(trial)[0]
        return Move(trial.candidate.name, act, self._why(trial, act))

    @property
    def best(self) -> Trial | None:
        """The best of the levels whose figures are all known, and meet the goals."""
        whole = [trial for trial in self.trials.values() if not self._unknown(trial)]
        good = [trial for trial in whole if not self.goals.lacks(trial.figures)]
        return min(good, key=lambda trial: self.goals.rank(trial.figures), default=None)

    def nearest(self) -> Trial | None:
        """The measured level whose worst miss is the smallest."""
        whole = [trial for trial in self.trials.values() if not self._unknown(trial)]
        return min(whole, key=lambda t: max(self.goals.lacks(t.figures).values(), default=0.0), default=None)

    def front(self) -> set[str]:
        """The levels that no other measured one beats in every figure of the goals."""
        names = [name for name in METRICS if name in {"kl", "tokens/s", "memory"} | {b.name for b in self.goals.bounds}]
        whole = {level: trial.figures for level, trial in self.trials.items() if not self._unknown(trial)}

        def beats(a: Figures, b: Figures) -> bool:
            signs = [(a[n] - b[n]) * (1 if METRICS[n].better == "less" else -1) for n in names if n in a and n in b]
            return bool(signs) and max(signs) <= 0 and min(signs) < 0

        return {one for one in whole if not any(beats(whole[other], whole[one]) for other in whole)}

    def lost(self, trial: Trial) -> str:
        """Why a level cannot be the best; "" where it still can."""
        if trial.fault:
            return f"cannot be made: {trial.fault}"
        if missed := self.goals.lacks(trial.figures):
            name = max(missed, key=lambda each: missed[each])
            return f"has {_figure(name, trial.figures[name])}; the goal is {self._bound(name)}"
        if not self._unknown(trial):
            best = self.best
            return "" if best is None or best is trial else f"meets the goals, and {best.candidate.name} is better"
        return self._predicted_miss(trial) or self._by_neighbours(trial)

    def _predicted_miss(self, trial: Trial) -> str:
        expected = trial.candidate.predicted
        for bound in self.goals.bounds:
            if bound.name in trial.figures or bound.name not in expected:
                continue
            value = self._expected(trial, bound.name)
            margin = self._margin(trial, bound.name)
            less = METRICS[bound.name].better == "less"
            if bound.lack(value / margin if less else value * margin):
                return f"would have about {_figure(bound.name, value)}; the goal is {bound.text}"
        return ""

    def _by_neighbours(self, trial: Trial) -> str:
        """The reason that a larger or a smaller level gives, which was measured."""
        for other in self.trials.values():
            if other is trial or not other.figures:
                continue
            no_better = self._is_no_better(trial, other)
            for name in self.goals.lacks(other.figures):
                if self._is_larger(trial, other, name) if name in _WITH_SIZE else no_better:
                    way = "larger" if name in _WITH_SIZE else "smaller" if trial.cut == other.cut else "no better"
                    return f"is {way} than {other.candidate.name}, which has {_figure(name, other.figures[name])}"
        best, first = self.best, self.goals.priorities[0]
        if best is not None and first in _WITH_SIZE and self._is_larger(trial, best, first):
            return f"is larger than {best.candidate.name}, which meets the goals"
        # A cut that costs nothing makes the same level smaller and faster, so it is tried.
        alike = best is not None and first not in _WITH_SIZE and best.cut in (trial.cut, "")
        if best is not None and alike and trial.whole * _ALIKE < best.whole:
            part = "is" if trial.cut == best.cut else "is cut of a level that is"
            return f"{part} smaller than {best.candidate.name}, which meets the goals"
        return ""

    def _is_larger(self, trial: Trial, other: Trial, name: str) -> bool:
        """Whether a level is so much larger than the other that this figure, which its size decides, is worse."""
        return trial.size > other.size * _ALIKE and (trial.cut == other.cut or name not in _SPEEDS)

    def _is_no_better(self, trial: Trial, other: Trial) -> bool:
        """Whether a level's divergence cannot be smaller than the other's, which is whole or cut alike."""
        if trial.cut == other.cut:
            return trial.whole * _ALIKE < other.whole
        return not other.cut and trial.whole <= other.whole * _ALIKE

    def _promising(self, trials: list[Trial]) -> Trial:
        """The next level: whole ones first, which are nearly always better than cut ones of their size.

        The largest where divergence counts most, else the middle one, which halves the rest.
        """
        bounded = {each.name for each in self.goals.bounds} - _WITH_SIZE
        whole = [trial for trial in trials if not trial.cut] or trials
        by_size = sorted(whole, key=lambda trial: -trial.size)
        if self.goals.priorities[0] in _WITH_SIZE:
            return by_size[(len(by_size) - 1) // 2] if bounded else by_size[-1]
        return by_size[0]

    def _unknown(self, trial: Trial) -> list[Act]:
        """The steps that a level still lacks, the cheapest first."""
        lacking = {METRICS[name].source for name in self.goals.wanted() if name not in trial.figures}
        acts: tuple[Act, ...] = ("speed", "quality")
        return [act for act in acts if act in lacking]

    def _expected(self, trial: Trial, name: str) -> float:
        """A prediction, corrected by how far the others were off."""
        off = self._off(name)
        return trial.candidate.predicted[name] * (statistics.median(off) if off else 1.0)

    def _margin(self, trial: Trial, name: str) -> float:
        """The factor by which a prediction may be wrong."""
        if name == "size" and not trial.cut:
            return 1.0
        if name in ("size", "memory"):
            return _NEAR
        return _SURE if self._off(name) else _UNSURE

    def _off(self, name: str) -> list[float]:
        if name in ("size", "memory"):
            return []
        pairs = [(each.figures.get(name), each.candidate.predicted.get(name)) for each in self.trials.values()]
        return [measured / predicted for measured, predicted in pairs if measured and predicted]

    def _bound(self, name: str) -> str:
        return next(each.text for each in self.goals.bounds if each.name == name)

    def _why(self, trial: Trial, act: Act) -> str:
        if act == "quality":
            return "it is fast and small enough so far" if self.goals.bounds else "its quality is not known yet"
        first = self.goals.priorities[0]
        if first not in _WITH_SIZE:
            return "it is the largest that may meet the goals"
        return f"{first} counts most, and this level tells most about the others"


def _figure(name: str, value: float) -> str:
    unit = METRICS[name].unit
    words = {"kl": "a KL divergence of", "perplexity": "a ratio of perplexities of", "size": "", "memory": ""}
    if unit == "tokens/s":
        return f"{shown(name, value)} {name}"
    if name == "size":
        return f"{shown(name, value)} of file"
    if name == "memory":
        return f"{shown(name, value)} of memory"
    return f"{words.get(name, name + ' of')} {shown(name, value)}"
