"""Two tables of logits compared, and the verdict by the level of the one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.levels.published import PUBLISHED

Logits = NDArray[np.float32]
# Mean KL divergence in nats that weights as they are may show, and how many times the published figure a level may.
_EXACT, _TIMES = 2e-3, 5.0
# The mean divergence that no level may pass, whether or not figures for it are published.
_MOST = 1.0


def compare(theirs: Logits, ours: Logits, level: str) -> dict[str, Any]:
    """The report on `(tokens, vocabulary)` logits; where one vocabulary is padded, the common part counts.

    - `largest`: the largest difference, in standard deviations of the original's logits.
    - `divergence`, `worst`: KL divergence from the original's distribution in nats, its mean and its largest value.
    - `agreement`: the share of positions whose likeliest token is the same; `positions` their number.
    - `limit`, `right`, `verdict`: the mean divergence that is allowed at this level, and what follows.
    """
    width = min(theirs.shape[1], ours.shape[1])
    theirs, ours = theirs[:, :width], ours[:, :width]
    largest = float(np.abs(theirs - ours).max() / (theirs.std() or 1.0))
    divergences = _divergences(theirs, ours)
    mean, limit = float(divergences.mean()), _limit(level)
    right = bool(np.isfinite(ours).all()) and mean <= limit
    return {
        "positions": len(ours),
        "largest": largest,
        "divergence": mean,
        "worst": float(divergences.max()),
        "agreement": float((theirs.argmax(axis=1) == ours.argmax(axis=1)).mean()),
        "limit": limit,
        "right": right,
        "verdict": "as close as this level can be" if right else "not the original's model: report it",
    }


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
