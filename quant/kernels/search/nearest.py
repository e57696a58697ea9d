"""The nearest vector of a grid to each of 16 vectors, one in each lane, by weighted squares of errors.

The cost of a vector at a given scale is the sum of the costs of its elements, (scale·v)·(w·scale·v − 2·w·x). So two
tables hold the costs of all possible first halves and of all possible second halves: 81 halves of four elements with
three values, or 64 halves of two elements with eight values. The exact cost of a vector is then one addition.

Only 16 vectors of the grid are tried: the nearest ones, unweighted, to the elements rounded one by one. When all
vectors are tried, the errors of whole tensors are smaller by 0 to 1 per cent.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quant.kernels.formats import Floats
from quant.kernels.vectors.compiler import part
from quant.kernels.vectors.simd import (
    HUGE,
    LANES,
    fma,
    gather,
    item,
    lane_numbers,
    load,
    splat,
    splat_int,
    store,
    where,
)

Indices = NDArray[np.int32]
# Vectors of the grid that are tried.
_NEAR = 16


class Grid(NamedTuple):
    """A grid of vectors, and tables for the search.

    A half has a number among all possible halves: its elements are the digits, the first one lowest. With the values
    −1, 0, 1 and four elements to a half, (0, −1, −1, 1) is number 1 + 0·3 + 0·9 + 2·27 = 55.
    """

    values: Floats
    """The values of elements, in order."""
    vectors: Floats
    """The vectors, flat: element i of vector n is at n·dims + i."""
    near: Indices
    """The _NEAR nearest vectors for each combination of two halves, (first + second · halves) · _NEAR + n.

    A vector is 16 × the number of its first half, plus 16 × the number of its second half in the upper 16 bits.
    """
    index_of: Indices
    """The index in the grid of the vector with given halves, at first + second · halves; 0 where the grid has none."""


def prepare(vectors: Floats) -> Grid:
    """The tables for vectors float32[count, dims]."""
    count, dims = vectors.shape
    half = dims // 2
    values, places = np.unique(vectors, return_inverse=True)
    places = places.reshape(count, dims).astype(np.float32)
    powers = len(values) ** np.arange(half)
    first, second = (places[:, part] @ powers for part in (slice(half), slice(half, dims)))
    first, second = first.astype(np.int32), second.astype(np.int32)
    size = len(values) ** half
    index_of = np.zeros(size * size, np.int32)
    index_of[first + size * second] = np.arange(count)
    digits = (np.arange(size)[:, None] // powers % len(values)).astype(np.float32)
    combinations = np.concatenate([np.tile(digits, (size, 1)), digits.repeat(size, axis=0)], axis=1)
    distance = (places**2).sum(axis=1) - 2 * combinations @ places.T
    # Whole numbers: sorting is stable, and the same everywhere.
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :_NEAR]
    near = (first * LANES | second * LANES << 16)[nearest].astype(np.int32).ravel()
    return Grid(values, vectors.ravel(), near, index_of)


@part
def _tabulate(x, w, first, count, values, scale, shift, table):
    """Fill `table` with the costs of all combinations of `values` in elements first … first + count, by their number.

    Returns the number of the cheapest.
    """
    store(table, 0, splat(0.0))
    size = 1
    cheapest = splat_int(0)
    for i in range(first, first + count):
        weight = load(w, i)
        minus = load(x, i) * weight * -2
        least = splat(HUGE)
        which = splat_int(0)
        for k in range(len(values) - 1, -1, -1):
            v = scale * (shift + item(values, k))
            cost = v * fma(v, weight, minus)
            less = cost < least
            least = where(less, cost, least)
            which = where(less, splat_int(k), which)
            for old in range(size):
                store(table, k * size + old, load(table, old) + cost)
        cheapest = cheapest + which * size
        size *= len(values)
    return cheapest


@part
def search(x, w, first, dims, grid, scale, shift, tables):
    """The index of the vector for which vector + `shift` costs least in elements first … first + dims."""
    table, other = tables
    half = _tabulate(x, w, first, dims // 2, grid.values, scale, shift, table)
    rest = _tabulate(x, w, first + dims // 2, dims // 2, grid.values, scale, shift, other)
    size = len(table) // LANES
    at = (half + rest * size) * _NEAR
    lanes = lane_numbers()
    best = splat(HUGE)
    which = splat_int(0)
    for n in range(_NEAR):
        halves = gather(grid.near, at + n)
        # Lanes are the low bits of an address in a table.
        cost = gather(table, halves & 0xFFFF | lanes) + gather(other, halves >> 16 | lanes)
        less = cost < best
        best = where(less, cost, best)
        which = where(less, halves, which)
    return gather(grid.index_of, ((which & 0xFFFF) >> 4) + (which >> 20) * size)
