"""The nearest vector of a grid to each of 16 vectors, one in each lane, by weighted squares of errors.

What a vector costs at a given scale falls apart into the costs of its elements, (scale·v)·(w·scale·v − 2·w·x). So the
costs of all first halves and of all second halves that a vector can have are tabulated (81 halves of four elements with
three values, 64 of two with eight), and then a vector is tried, exactly, at the price of one addition.

Tried are the vectors of the grid that are nearest, unweighted, to the elements rounded each by itself. The true best
one is hardly ever further away: with every vector tried, the errors of whole tensors are smaller by 0 to 1 per cent.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quant.kernels.formats import Floats
from quant.kernels.vectors.compiler import part
from quant.kernels.vectors.simd import LANES, fma, gather, item, lane_numbers, load, splat, splat_int, store, where

_HUGE = np.float32(3e38)
Indices = NDArray[np.int32]


_NEAR = 16


class Grid(NamedTuple):
    """A grid of vectors. The place of a half is its number among all that there could be."""

    values: Floats
    """The values that elements can have, in order."""
    vectors: Floats
    """The vectors, flat."""
    near: Indices
    """For each combination of values, the first half changing fastest, the _NEAR nearest vectors: 16 × the place of the
    first half, and in the upper 16 bits the same of the second."""
    index_of: Indices
    """The index of the vector with given halves, of those that there are."""


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
    """The costs of all combinations of `values` in elements first … first + count, the first changing fastest.

    Returns the place of the cheapest.
    """
    store(table, 0, splat(0.0))
    size = 1
    cheapest = splat_int(0)
    for i in range(first, first + count):
        weight = load(w, i)
        minus = load(x, i) * weight * -2
        least = splat(_HUGE)
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
    """The index of the grid's vector, plus `shift`, that costs least for elements first … first + dims."""
    table, other = tables
    half = _tabulate(x, w, first, dims // 2, grid.values, scale, shift, table)
    rest = _tabulate(x, w, first + dims // 2, dims // 2, grid.values, scale, shift, other)
    size = len(table) // LANES
    at = (half + rest * size) * _NEAR
    lanes = lane_numbers()
    best = splat(_HUGE)
    which = splat_int(0)
    for n in range(_NEAR):
        halves = gather(grid.near, at + n)
        # Lanes are the low bits of an address in a table.
        cost = gather(table, halves & 0xFFFF | lanes) + gather(other, halves >> 16 | lanes)
        less = cost < best
        best = where(less, cost, best)
        which = where(less, halves, which)
    return gather(grid.index_of, ((which & 0xFFFF) >> 4) + (which >> 20) * size)
