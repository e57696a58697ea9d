"""The factors of a Gram matrix by which an error of one column is made up for in the columns not yet rounded.

With H = L·D·Lᵀ, L lower triangular with ones on its diagonal, a row's error δ·H·δᵀ is the sum over columns of
D·(δ[k] + Σ δ[j]·L[j, k])², j behind k. So columns are rounded from the last to the first, each one's target less
Σ δ[j]·L[j, k]. This is the feedback of GPTQ (arXiv 2210.17323) in the form of LDLQ (QuIP, arXiv 2307.13304), which
needs no inverse. Columns with the largest inputs come last in the order, so they are rounded first; columns of a
super-block stay together, and so do super-blocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from quant.errors import BadValues, WrongShape
from quant.feedback.products import PANEL, multiply
from quant.kernels.formats import Floats
from quant.kernels.vectors.compiler import kernel
from quant.kernels.vectors.simd import LANES, fma, item, load, store

# The part that is added to the diagonal, as a share of its mean; ten times as much again where the matrix is singular.
DAMPING = 0.03
_TRIES = 4
# Tiles of rows that a thread takes at a time.
_TILES = 16


@kernel("boolean(float64[:, ::1])")
def _decompose(block):
    """Cholesky's factor of a small matrix in its own place, lower triangle; False where it is not positive definite."""
    size = len(block)
    for j in range(size):
        pivot = block[j, j]
        for k in range(j):
            pivot -= block[j, k] * block[j, k]
        if not pivot > 0:
            return False
        pivot = np.sqrt(pivot)
        block[j, j] = pivot
        for i in range(j + 1, size):
            value = block[i, j]
            for k in range(j):
                value -= block[i, k] * block[j, k]
            block[i, j] = value / pivot
    return True


@kernel("void(float32[::1], float32[::1], int64, int64, float32[:, ::1], int64)")
def _solve(rows, products, n, column, corner, width):
    """Finish columns `column` … of the factor for tiles below its corner: (rows − products)·corner⁻ᵀ, in place.

    corner: float32, the reciprocals of its diagonal on the diagonal.
    """
    for t in range(len(products) // (PANEL * LANES)):
        for j in range(width):
            place = t * n + column + j
            value = load(rows, place) - load(products, t * PANEL + j)
            line = corner[j]
            for i in range(j):
                value = fma(load(rows, t * n + column + i), -item(line, i), value)
            store(rows, place, value * item(line, j))


class GramFactor:
    """A Gram matrix in the order of rounding, and its factor.

    order: int64[n], the column that stands at each place. columns are rounded from the last place to the first.
    curvature: float32[n, n], the damped Gram matrix in this order.
    coefficients: float32[n, n], L as above; what lies above its diagonal means nothing.
    power: float32[n], the diagonal of the damped Gram matrix in the columns' own order.
    scale: what the Gram matrix was divided by: the mean of its diagonal.
    """

    def __init__(self, gram: NDArray[np.float32], damping: float = DAMPING, threads: int = 1) -> None:
        """Factor a Gram matrix float32[n, n], n a multiple of 32; only ratios matter.

        Raises WrongShape, and BadValues for NaN, infinity, or a diagonal that is negative or all 0.
        """
        n = len(gram)
        if gram.shape != (n, n) or n % 32 or not n:
            raise WrongShape(f"a Gram matrix of shape {gram.shape} is not square, or its width no multiple of 32")
        power = gram.diagonal().astype(np.float32)
        mean = float(power.astype(np.float64).mean())
        if not np.isfinite(mean) or mean <= 0 or power.min() < 0 or not np.isfinite(gram).all():
            raise BadValues(
                "the Gram matrix of inputs holds NaN, infinity or no inputs", "collect the statistics again"
            )
        self.order = _order(power)
        curvature = gram[np.ix_(self.order, self.order)]
        curvature *= np.float32(1 / mean)
        before, added = np.float32(0), np.float32(damping)
        for _ in range(_TRIES):
            curvature[np.diag_indices(n)] += added - before
            factor = _factor(curvature, threads)
            if factor is not None:
                break
            before, added = added, added * np.float32(10)
        else:
            raise BadValues("the Gram matrix of inputs is no product of inputs", "collect the statistics again")
        self.damping, self.scale = float(added), mean
        self.curvature, self.coefficients = curvature, factor
        self.power = power * np.float32(1 / mean) + added


def _order(power: Floats) -> NDArray[np.int64]:
    """Columns by their inputs, the largest last, inside super-blocks, which come by their sums."""
    panels = [np.arange(first, min(first + PANEL, len(power))) for first in range(0, len(power), PANEL)]
    return np.concatenate([panel[np.argsort(power[panel], kind="stable")] for panel in panels])


def _factor(matrix: Floats, threads: int) -> Floats | None:
    """L of `matrix`; None where it is not positive definite."""
    n = len(matrix)
    padded = -(-n // LANES)
    rows = np.ascontiguousarray(matrix.reshape(padded, LANES, n).transpose(0, 2, 1))
    pivots = np.empty(n, np.float32)
    with ThreadPoolExecutor(threads) as pool:
        for column in range(0, n, PANEL):
            width = min(PANEL, n - column)
            first = column // LANES
            above = rows[first : first + width // LANES, :column].transpose(1, 0, 2).reshape(column, width)
            above = np.ascontiguousarray(above)
            corner = _corner(rows[first : first + width // LANES], above, n, column)
            if corner is None:
                return None
            pivots[column : column + width] = 1 / corner.diagonal()
            starts: Iterable[int] = range(first, padded, _TILES)

            def work(start: int, above: Floats = above, corner: Floats = corner, column: int = column) -> None:
                part = rows[start : start + _TILES]
                products = np.empty(len(part) * PANEL * LANES, np.float32)
                width = len(corner)
                multiply(part.reshape(-1), n, 0, column, above, 0, width, products)
                _solve(part.reshape(-1), products, n, column, corner, width)

            list(pool.map(work, starts))
    for tile in rows:  # from tiles to rows, in the same memory
        tile.reshape(LANES, n)[:] = tile.T.copy()
    found = rows.reshape(n, n)
    found /= pivots
    return found


def _corner(tiles: Floats, above: Floats, n: int, column: int) -> Floats | None:
    """The factor of a panel's own square, with the reciprocals of its diagonal."""
    width = len(tiles) * LANES
    products = np.empty(len(tiles) * PANEL * LANES, np.float32)
    multiply(tiles.reshape(-1), n, 0, column, above, 0, width, products)
    left = tiles[:, column : column + width] - products.reshape(len(tiles), PANEL, LANES)[:, :width]
    block = np.ascontiguousarray(left.transpose(0, 2, 1)).reshape(width, width).astype(np.float64)
    if not _decompose(block):
        return None
    corner = np.tril(block).astype(np.float32)
    corner[np.diag_indices(width)] = 1 / corner.diagonal()
    return corner
