"""A reference's distributions over the next token, kept small: the likeliest tokens, and what is left for all others.

Tokens are kept until the others together have at most `MASS` of the probability. The KL divergence from such a record
counts the others as one token. By the log-sum inequality this leaves out `rest` · KL(others), which is never negative:
the divergence among the others alone, times their probability. `Divergence.hidden` estimates it by the divergence among
the less likely half of the tokens that were kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.meter.sizes import scored

Logits = NDArray[np.float32]
Floats = NDArray[np.float64]
# The most probability that the tokens which are not kept have together, and the most tokens that are kept.
MASS, MOST = 1e-3, 1 << 16
# A remainder of the model's that is lost in rounding.
_LEAST = 1e-12


class Distribution(NamedTuple):
    """One position: the kept tokens' `ids` (uint32) and natural `logs` (float32), and the probability of the `rest`."""

    ids: NDArray[np.uint32]
    logs: Logits
    rest: float


class KeptWindow(NamedTuple):
    """One window of text as the reference read it.

    - `tokens`: int32 `(tokens,)`, all of it. A token of the second half is scored by the position before it.
    - `counts`: uint32 `(positions,)`, how many tokens each position keeps; `ids` and `logs` hold these one by one.
    - `rests`: float64 `(positions,)`. `drawn`: float64 `(positions,)`, the text's own next token's log probability.
    - `best`: uint32 `(positions,)`, the likeliest token.
    """

    tokens: NDArray[np.int32]
    counts: NDArray[np.uint32]
    ids: NDArray[np.uint32]
    logs: Logits
    rests: Floats
    drawn: Floats
    best: NDArray[np.uint32]


class Compared(NamedTuple):
    """One window as the model read it, beside the reference; all `(positions,)`.

    - `divergence`: KL(reference ‖ model) in nats. `hidden`: how much it is too small, estimated.
    - `reference`, `model`: the log probability of the text's own next token.
    - `same`: whether the likeliest token is the same. `flipped`: whether just one of both has the text's token as the
      likeliest.
    """

    divergence: Floats
    hidden: Floats
    reference: Floats
    model: Floats
    same: NDArray[np.bool_]
    flipped: NDArray[np.bool_]


class NotFinite(ValueError):
    """A model's logits are not finite."""


def log_probabilities(logits: Logits) -> Floats:
    """The natural logarithms of the probabilities of all tokens. Raises NotFinite."""
    values = logits.astype(np.float64)
    if not np.isfinite(highest := values.max()):
        raise NotFinite("the logits are not finite")
    values -= highest
    values -= np.log(np.exp(values).sum())
    return values


def keep(log_p: Floats, mass: float = MASS, most: int = MOST) -> Distribution:
    """The likeliest tokens of a distribution, until the others have at most `mass`."""
    p = np.exp(log_p)
    ordered = np.sort(p)
    first = max(int(np.searchsorted(np.cumsum(ordered), mass, "right")), len(p) - most)
    ids = np.flatnonzero(p >= ordered[min(first, len(p) - 1)])[:most]
    rest = 0.0 if len(ids) == len(p) else max(0.0, float(p.sum() - p[ids].sum()))
    return Distribution(ids.astype(np.uint32), log_p[ids].astype(np.float32), rest)


def divergence(kept: Distribution, log_q: Floats) -> tuple[float, float]:
    """KL(kept ‖ q) in nats with all other tokens as one, and how much that is too small, estimated."""
    log_p, log_own = kept.logs.astype(np.float64), log_q[kept.ids]
    p = np.exp(log_p)
    found = float((p * (log_p - log_own)).sum())
    if not kept.rest:
        return found, 0.0
    rest = max(_LEAST, float(np.exp(log_q).sum() - np.exp(log_own).sum()))
    found += kept.rest * float(np.log(kept.rest / rest))
    low = log_p <= np.median(log_p)
    mine, theirs = p[low].sum(), np.exp(log_own[low]).sum()
    among = float((p[low] * (log_p[low] - log_own[low])).sum() / mine - np.log(mine / max(_LEAST, theirs)))
    return found, kept.rest * max(0.0, among)


def record(tokens: NDArray[np.int32], rows: Iterable[Logits], mass: float = MASS) -> KeptWindow:
    """The record of a window, whose last rows of logits are `rows`: the row of position i speaks of token i + 1."""
    kept, drawn, best = [], [], []
    for row, token in zip(rows, tokens[len(tokens) - scored(len(tokens)) :], strict=True):
        log_p = log_probabilities(row)
        kept.append(keep(log_p, mass))
        drawn.append(log_p[token])
        best.append(log_p.argmax())
    return KeptWindow(
        tokens.astype(np.int32),
        np.array([len(each.ids) for each in kept], np.uint32),
        np.concatenate([each.ids for each in kept]),
        np.concatenate([each.logs for each in kept]),
        np.array([each.rest for each in kept]),
        np.array(drawn),
        np.array(best, np.uint32),
    )


def compare(window: KeptWindow, rows: Iterable[Logits]) -> Compared:
    """The model's `rows` of logits of a window against the reference's record. Raises NotFinite."""
    ends = np.cumsum(window.counts, dtype=np.int64)
    texts = window.tokens[len(window.tokens) - len(ends) :]
    found: list[tuple[float, float, float, int]] = []
    for row, end, count, rest, token in zip(rows, ends, window.counts, window.rests, texts, strict=True):
        log_q, part = log_probabilities(row), slice(end - int(count), end)
        kept = Distribution(window.ids[part], window.logs[part], float(rest))
        found.append((*divergence(kept, log_q), float(log_q[token]), int(log_q.argmax())))
    divergences, hidden, model, best = (np.array(each) for each in zip(*found, strict=True))
    return Compared(
        divergences,
        hidden,
        window.drawn,
        model,
        best == window.best,
        (best == texts) != (window.best == texts),
    )
