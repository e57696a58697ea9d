"""The channels of a feed-forward that stay, and the columns of its down projection refitted to do the others' work.

x are the inputs of the down projection W, and H = Σ x·xᵀ. Without channel j, and with the other columns refitted, the
squared error of the outputs grows by ‖W_j‖² / (H⁻¹)_jj: this is optimal brain surgery (Hassibi and Stork, 1993) for a
column. Channels go greedily by it, and H⁻¹ and W follow each time. At the end the columns are fitted once more in
float64: W_S + W_R·A with A = H_RS·H_SS⁻¹, S the channels that stay and R the others. A does not depend on W, so it
holds for the weights of the source, whatever file the inputs came from.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quant.errors import BadValues, WrongShape

# The part that is added to H's diagonal, as a share of its mean: while channels are chosen, and for the last fit.
_DAMPING, _RIDGE = 1e-3, 1e-4
# A channel is dead where it adds less than this share of the mean channel's energy to the outputs.
_DEAD = 1e-6
# Channels that go in a round, and how many of least cost they are chosen from, one by one.
_ROUND, _POOL = 64, 256
# Rows of W on which the remaining error is estimated.
_ROWS = 256
# Above this width H⁻¹ is computed in float32: at 14,336 it then takes 0.8 GB, and its copies as much.
_DOUBLE = 6144


class Channels(NamedTuple):
    """Channels of a layer: `kept` int64[k], sorted; `refit` float32[n − k, k], A above, its rows in order.

    `dead` counts the channels that do nothing. `lost` is the share of the outputs' squares that no fit brings back.
    """

    kept: NDArray[np.int64]
    refit: NDArray[np.float32]
    dead: int
    lost: float


def choose(gram: NDArray[np.float32], weights: NDArray[np.float32], keep: int) -> Channels:
    """The `keep` channels that stay.

    gram: float32[n, n], Σ x·xᵀ. weights: float32[rows, n]. At n = 14,336 with 4,096 rows this takes under 6 GB. Raises
    WrongShape, BadValues for values that are not finite.
    """
    n = len(gram)
    if gram.shape != (n, n) or weights.shape[1:] != (n,) or not 0 < keep < n:
        raise WrongShape(f"{keep} of {n} channels, inputs {gram.shape}, weights {weights.shape}")
    if not (np.isfinite(gram.diagonal()).all() and np.isfinite(weights).all()):
        raise BadValues("the inputs or the weights of a feed-forward are not finite", "bring the model in again")
    norms = np.einsum("ij,ij->j", weights, weights, dtype=np.float64)
    energy = gram.diagonal().astype(np.float64) * norms
    dead = np.flatnonzero(energy <= _DEAD * energy.mean())
    gone = dead[np.argsort(energy[dead], kind="stable")][: n - keep]
    if left := n - keep - len(gone):
        alive = np.setdiff1d(np.arange(n), gone)
        gone = np.concatenate([gone, alive[_greedy(gram, weights, alive, left)]])
    kept, gone = np.setdiff1d(np.arange(n), gone), np.sort(gone)
    refit = _refit(gram, kept, gone)
    return Channels(kept, refit, len(dead), _lost(gram, weights, kept, gone, refit))


def _greedy(
    gram: NDArray[np.float32], weights: NDArray[np.float32], alive: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """The places in `alive` of `count` channels that go."""
    kind: Any = np.float64 if len(alive) <= _DOUBLE else np.float32
    scale: NDArray[Any] = np.sqrt(gram.diagonal()[alive]).astype(kind)  # for a diagonal of ones: float32 will do
    inverse: NDArray[Any] = gram[np.ix_(alive, alive)].astype(kind, copy=False)
    inverse /= scale
    inverse /= scale[:, None]
    inverse[np.diag_indices(len(alive))] += _DAMPING * (scale.astype(np.float64) ** 2).mean() / scale**2
    inverse = np.linalg.inv(inverse)
    columns = weights[:, alive] * scale.astype(np.float32)
    stays = np.ones(len(alive), bool)
    gone: list[int] = []
    while len(gone) < count:
        cost = np.einsum("ij,ij->j", columns, columns) / np.maximum(inverse.diagonal(), 1e-12)
        cost[~stays] = np.inf
        pool = np.argpartition(cost, min(_POOL, stays.sum() - 1))[: min(_POOL, stays.sum())]
        chosen = pool[_exact(inverse[np.ix_(pool, pool)], columns[:, pool], min(_ROUND, count - len(gone)))]
        step = np.linalg.solve(inverse[np.ix_(chosen, chosen)], inverse[chosen])
        columns -= columns[:, chosen] @ step.astype(np.float32)
        inverse -= inverse[:, chosen] @ step
        columns[:, chosen] = 0
        stays[chosen] = False
        gone += chosen.tolist()
    return np.array(gone)


def _exact(inverse: NDArray[Any], columns: NDArray[np.float32], count: int) -> list[int]:
    """Places of `count` channels, one after the other the cheapest, in a part of H⁻¹ and its columns of W."""
    inverse = inverse.astype(np.float64)
    gram: NDArray[Any] = (columns.T @ columns).astype(np.float64)
    found: list[int] = []
    for _ in range(count):
        cost = gram.diagonal() / np.maximum(inverse.diagonal(), 1e-12)
        cost[found] = np.inf
        one = int(cost.argmin())
        step = inverse[one] / inverse[one, one]
        # (W − W_j·step)ᵀ·(W − W_j·step), by the products of columns alone.
        cross = np.outer(gram[:, one], step)
        gram -= cross + cross.T - gram[one, one] * np.outer(step, step)
        inverse -= np.outer(inverse[:, one], step)
        found.append(one)
    return found


def _refit(gram: NDArray[np.float32], kept: NDArray[np.int64], gone: NDArray[np.int64]) -> NDArray[np.float32]:
    """A of the refitted columns, float32[gone, kept]."""
    square = gram[np.ix_(kept, kept)].astype(np.float64)
    mean = square.diagonal().mean()
    if not mean:
        return np.zeros((len(gone), len(kept)), np.float32)
    square[np.diag_indices(len(kept))] += _RIDGE * mean
    found = np.linalg.solve(square, gram[np.ix_(kept, gone)].astype(np.float64))
    return np.ascontiguousarray(found.T.astype(np.float32))


def _lost(
    gram: NDArray[np.float32],
    weights: NDArray[np.float32],
    kept: NDArray[np.int64],
    gone: NDArray[np.int64],
    refit: NDArray[np.float32],
) -> float:
    """The share of the outputs' squares that is lost, over some of the rows."""
    rows = weights[np.linspace(0, len(weights) - 1, min(_ROWS, len(weights))).astype(int)]
    error = np.zeros_like(rows)
    error[:, gone], error[:, kept] = rows[:, gone], -(rows[:, gone] @ refit)
    whole, part = (float(np.einsum("ij,ij->", each @ gram, each, dtype=np.float64)) for each in (rows, error))
    return max(0.0, part / whole) if whole > 0 else 0.0
