"""The figures of a comparison, each with its standard error.

Neighbouring tokens are not independent, and windows of text nearly are: every error comes from the spread between
windows. Means have the error of windows' means. Quantiles have the error of a bootstrap that draws whole windows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, sqrt
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from runtime.meter.kept import Compared

_DRAWS, _SEED = 200, 20
QUANTILES = {"median": 0.5, "p99": 0.99, "p999": 0.999}


class Figure(TypedDict):
    """A value and its standard error; None where a single window shows none."""

    value: float
    error: float | None


class Figures(TypedDict):
    """Divergences are in nats; `top1` and `flips` are shares of positions; `ratio` is of the perplexities.

    `hidden` estimates how much the mean is too small, because unlikely tokens were counted together.
    """

    windows: int
    positions: int
    mean: Figure
    median: Figure
    p99: Figure
    p999: Figure
    top1: Figure
    flips: Figure
    perplexity: Figure
    reference_perplexity: Figure
    ratio: Figure
    hidden: float


def figures(windows: Sequence[Compared]) -> Figures:
    """The figures of windows of one length, at least one."""

    def whole(name: str) -> NDArray[np.float64]:
        return np.stack([np.asarray(getattr(each, name), np.float64) for each in windows])

    divergence, model, reference = whole("divergence"), whole("model"), whole("reference")
    quantiles = {name: _quantile(divergence, share) for name, share in QUANTILES.items()}
    return {
        "windows": len(windows),
        "positions": int(divergence.size),
        "mean": _mean(divergence),
        "median": quantiles["median"],
        "p99": quantiles["p99"],
        "p999": quantiles["p999"],
        "top1": _mean(whole("same")),
        "flips": _mean(whole("flipped")),
        "perplexity": _power(-model),
        "reference_perplexity": _power(-reference),
        "ratio": _power(reference - model),
        "hidden": float(whole("hidden").mean()),
    }


def gain(before: Sequence[Compared], after: Sequence[Compared]) -> Figure:
    """How much less the mean divergence is than before, on the same windows.

    The error comes from the differences: a window that is hard for both models does not add to it.
    """
    pairs = zip(before, after, strict=True)
    return _mean(np.stack([np.asarray(old.divergence - new.divergence, np.float64) for old, new in pairs]))


def _mean(values: NDArray[np.float64]) -> Figure:
    """The mean of `(windows, positions)` values."""
    means = values.mean(axis=1)
    error = float(means.std(ddof=1) / sqrt(len(means))) if len(means) > 1 else None
    return {"value": float(values.mean()), "error": error}


def _power(values: NDArray[np.float64]) -> Figure:
    """e to the power of the mean; the error is carried over by the derivative."""
    mean = _mean(values)
    value = exp(mean["value"])
    return {"value": value, "error": None if mean["error"] is None else value * mean["error"]}


def _quantile(values: NDArray[np.float64], share: float) -> Figure:
    """A quantile of all positions; the error is the spread between draws of as many windows, with replacement."""
    quantile: Callable[[NDArray[np.float64]], float] = lambda part: float(np.quantile(part, share))  # noqa: E731
    if len(values) == 1:
        return {"value": quantile(values), "error": None}
    chance = np.random.default_rng(_SEED)
    draws = [quantile(values[chance.integers(len(values), size=len(values))]) for _ in range(_DRAWS)]
    return {"value": quantile(values), "error": float(np.std(draws, ddof=1))}
