"""Goals of a tune, as Olive has them: bounds that figures must keep, and the priorities among what keeps them.

    kl<=0.02, tokens/s>=8, memory<=3GB, max tokens/s

Bounds come with `<=` and `>=`; `min FIGURE` and `max FIGURE` are priorities, the first of which counts most.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from runtime.units import size_text

Figures = Mapping[str, float]
MOST_GOALS, _LONGEST = 16, 400
_PART = re.compile(r"(?:(min|max) )?([a-z0-9%./ -]+?)(?: ?(<=|>=|<|>|=) ?([0-9.]+) ?([a-z/%]*))?", re.IGNORECASE)
_SIZE: dict[str, float] = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_SIZE |= {f"{letter}ib": 1 << 10 * (power + 1) for power, letter in enumerate("kmgt")}


class Metric(NamedTuple):
    """A figure that goals may bound. `source` tells which step finds it out."""

    better: Literal["less", "more"]
    source: Literal["file", "speed", "quality"]
    unit: Literal["", "bytes", "tokens/s", "%"]
    meaning: str


METRICS = {
    "kl": Metric("less", "quality", "", "KL divergence from the original, its mean"),
    "kl99.9": Metric("less", "quality", "", "its quantile of 99.9 %"),
    "top1": Metric("more", "quality", "%", "positions with the same likeliest token"),
    "perplexity": Metric("less", "quality", "", "its ratio to the original's"),
    "tokens/s": Metric("more", "speed", "tokens/s", "of one answer"),
    "prompt tokens/s": Metric("more", "speed", "tokens/s", "of one prompt"),
    "memory": Metric("less", "speed", "bytes", "of the loaded model"),
    "size": Metric("less", "file", "bytes", "of its file"),
}
# Priorities behind the user's own.
_USUAL = ("kl", "tokens/s", "size")


class BadGoal(ValueError):
    """A goal that cannot be read; the arguments are a sentence and a hint."""


class Bound(NamedTuple):
    """A bound on a figure."""

    name: str
    value: float

    @property
    def text(self) -> str:
        """The goal as it was meant: `tokens/s >= 8`."""
        return f"{self.name} {'<=' if METRICS[self.name].better == 'less' else '>='} {shown(self.name, self.value)}"

    def lack(self, value: float) -> float:
        """How far a value misses the bound, relative to the larger of both; 0 where it keeps it."""
        over = value - self.value if METRICS[self.name].better == "less" else self.value - value
        return max(0.0, over / max(abs(value), abs(self.value), 1e-12))


@dataclass(frozen=True)
class Goals:
    """Bounds, by the names of figures, and the priorities: names of figures, the first of which counts most."""

    bounds: tuple[Bound, ...]
    priorities: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Goals:
        """The goals of a text. Raises BadGoal."""
        if len(text) > _LONGEST:
            raise BadGoal(f"the goal has more than {_LONGEST} letters", "say it shorter")
        bounds: dict[str, Bound] = {}
        priorities: list[str] = []
        for part in filter(None, (part.strip() for part in re.split("[,;]", text))):
            bound = _read(part)
            if isinstance(bound, Bound):
                if bound.name in bounds:
                    raise BadGoal(f"the goal bounds {bound.name} twice", "leave one of them out")
                bounds[bound.name] = bound
            else:
                priorities.append(bound)
        if not bounds and not priorities:
            raise BadGoal("the goal is empty", "write it like `kl<=0.02, tokens/s>=8, memory<=3GB`")
        return cls(tuple(bounds.values()), tuple(dict.fromkeys([*priorities, *_USUAL])))

    def lacks(self, figures: Figures) -> dict[str, float]:
        """The bounds that the known figures miss, with how far."""
        missed = {each.name: each.lack(figures[each.name]) for each in self.bounds if each.name in figures}
        return {name: lack for name, lack in missed.items() if lack}

    def wanted(self) -> set[str]:
        """The figures that the goals need, and the usual ones."""
        return {each.name for each in self.bounds} | set(self.priorities)

    def rank(self, figures: Figures) -> tuple[float, ...]:
        """A key by which the best figures come first; a figure that is not known counts as the worst."""
        return tuple(
            figures.get(name, float("inf")) if METRICS[name].better == "less" else -figures.get(name, -float("inf"))
            for name in self.priorities
        )


def shown(name: str, value: float) -> str:
    """A figure with its unit."""
    match METRICS[name].unit:
        case "bytes":
            return size_text(round(value))
        case "tokens/s":
            return f"{value:.1f}" if value < 100 else f"{value:.0f}"
        case "%":
            return f"{100 * value:.2f} %"
    return f"{value:.3g}" if name != "perplexity" else f"{value:.4f}"


def _read(part: str) -> Bound | str:
    """A bound, or the name of a priority. Raises BadGoal."""
    found = _PART.fullmatch(part)
    known = ", ".join(METRICS)
    if found is None:
        raise BadGoal(f"`{part[:60]}` is no goal", "write it like `kl<=0.02`, `tokens/s>=8` or `max tokens/s`")
    order, name, sign, number, unit = (
        found[1] or "",
        found[2].strip().lower(),
        found[3],
        found[4],
        (found[5] or "").lower(),
    )
    if name not in METRICS:
        raise BadGoal(f"`{name[:40]}` is no figure of a tune", f"known are {known}")
    metric = METRICS[name]
    way, mark = ("min", "<=") if metric.better == "less" else ("max", ">=")
    if bool(order) == bool(sign):
        raise BadGoal(f"`{part[:60]}` is neither a bound nor a priority", f"write `{name}{mark}…` or `{way} {name}`")
    if (order or way).lower() != way or (sign and sign[0] != mark[0]):
        comparison = "lower" if metric.better == "less" else "higher"
        raise BadGoal(f"{name} is better the {comparison}", f"write `{way} {name}` or `{name}{mark}…`")
    return Bound(name, _value(name, number, unit)) if sign else name


def _value(name: str, number: str, unit: str) -> float:
    """The value of a bound. Raises BadGoal."""
    factors: dict[str, dict[str, float]] = {
        "bytes": _SIZE,
        "%": {"": 1.0, "%": 0.01},
        "tokens/s": {"": 1.0, "tokens/s": 1.0},
        "": {"": 1.0},
    }
    try:
        value = float(number) * factors[METRICS[name].unit][unit]
    except (ValueError, KeyError):
        raise BadGoal(f"`{number[:20]}{unit[:20]}` is no value of {name}", "write it like `memory<=3GB`") from None
    if METRICS[name].unit == "%" and value > 1:
        value /= 100
    if not 0 <= value < 1e18:
        raise BadGoal(f"`{number[:20]}{unit[:20]}` is no value of {name}", "write it like `memory<=3GB`")
    return value
