"""Two tables of logits compared, and the verdict by the level of the one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.levels.published import PUBLISHED
from server.verify.layers import Stage

Logits = NDArray[np.float32]
# Mean KL divergence in nats that weights as they are may show, and how many times the published figure a level may.
_EXACT, _TIMES = 2e-3, 5.0
# The mean divergence that no level may pass, whether or not figures for it are published.
_MOST = 1.0


def compare(theirs: Logits, ours: Logits, level: str, stages: Sequence[Stage] = ()) -> dict[str, Any]:
    """The report on `(tokens, vocabulary)` logits and all stages; where one vocabulary is padded, its rest is left out.

    - `largest`: the largest difference, in standard deviations of the original's logits.
    - `divergence`, `worst`: KL divergence from the original's distribution in nats, its mean and its largest value.
    - `agreement`: the share of positions whose likeliest token is the same; `positions` their number.
    - `limit`: the mean divergence that is allowed at this level.
    - `stages`: the errors of each layer, as in `server/verify/layers.py`. `first` names the first layer that is too far
      off, `unseen` the layers without a counterpart.
    - `right`, `verdict`: what follows.
    """
    width = min(theirs.shape[1], ours.shape[1])
    theirs, ours = theirs[:, :width], ours[:, :width]
    largest = float(np.abs(theirs - ours).max() / (theirs.std() or 1.0))
    divergences = _divergences(theirs, ours)
    mean, limit = float(divergences.mean()), _limit(level)
    first = next((each.name for each in stages if not each.right), None)
    right = bool(np.isfinite(ours).all()) and mean <= limit and not first
    return {
        "positions": len(ours),
        "largest": largest,
        "divergence": mean,
        "worst": float(divergences.max()),
        "agreement": float((theirs.argmax(axis=1) == ours.argmax(axis=1)).mean()),
        "limit": limit,
        "stages": [each._asdict() for each in stages],
        "first": first,
        "unseen": [each.name for each in stages if each.own is None],
        "right": right,
        "verdict": _verdict(right, first),
    }


def _verdict(right: bool, first: str | None) -> str:
    if first:
        return f"not the original's model from {first} on: report it"
    return "as close as this level can be" if right else "not the original's model: report it"


def _divergences(theirs: Logits, ours: Logits) -> NDArray[np.float64]:
    """KL divergence at each position, in nats."""
    p, q = (_log_softmax(each.astype(np.float64)) for each in (theirs, ours))
    return np.asarray((np.exp(p) * (p - q)).sum(axis=1).clip(0.0))


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _limit(level: str) -> float:
    """The mean divergence that is allowed; a small model loses more than the large one of the published figures."""
    if level in ("F32", "F16", "BF16"):
        return _EXACT
    figures = PUBLISHED.get(level)
    return min(_MOST, max(5 * _EXACT, _TIMES * figures.divergence)) if figures and figures.divergence else _MOST
