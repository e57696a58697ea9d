"""The nearest vector of a grid to each of 16 vectors, one in each lane, by weighted squares of errors.

What a vector costs at a given scale falls apart into the costs of its elements, (scale·v)·(w·scale·v − 2·w·x). So the
costs of all first halves and of all second halves that a vector can have are tabulated (81 halves of four elements with
three values, 64 of two with eight), and then a vector is tried, exactly, at the price of one addition.

`search_all` tries every vector. `search_near` is for the larger grids: it rounds each element by itself, and tries the
grid's vectors that are nearest, unweighted, to the result; the true best one is hardly ever further away.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quant.kernels.compiler import part
from quant.kernels.formats import Floats
from quant.kernels.simd import LANES, fma, gather, item, lane_numbers, load, minimum, splat, splat_int, store, where

_HUGE = np.float32(3e38)
Indices = NDArray[np.int32]


class Grid(NamedTuple):
    """A grid of vectors, flat, and where the costs of their halves stand in the tables."""

    values: Floats
    """The values that elements can have, in order."""
    vectors: Floats
    first_half: Indices
    second_half: Indices
    near: Indices
    """For each combination of values the nearest vectors of the grid, _NEAR of each, by the places of their two halves
    (the second in the upper 16 bits); empty where every vector is tried."""
    index_of: Indices
    """The index of the vector with these halves, of those that there are."""


_NEAR = 16


def prepare(vectors: Floats, listed: bool) -> Grid:
    """The tables for vectors float32[count, dims]; `listed` to search near the rounded elements only."""
    count, dims = vectors.shape
    half = dims // 2
    values, places = np.unique(vectors, return_inverse=True)
    powers = len(values) ** np.arange(half)
    places = places.reshape(count, dims)
    first, second = places[:, :half] @ powers, places[:, half:] @ powers
    size = len(values) ** half
    index_of = np.zeros(size * size, np.int32)
    index_of[first + size * second] = np.arange(count)
    near = np.empty(0, np.int32)
    if listed:
        digits = np.arange(size)[:, None] // powers % len(values)
        everything = np.concatenate([np.tile(digits, (size, 1)), digits.repeat(size, axis=0)], axis=1).astype(np.float32)
        grid_places = places.astype(np.float32)
        distance = (grid_places**2).sum(axis=1) - 2 * everything @ grid_places.T
        nearest = np.argpartition(distance, _NEAR, axis=1)[:, :_NEAR]
        near = (first | second << 16)[nearest].astype(np.int32).ravel()
    return Grid(values, vectors.ravel(), first.astype(np.int32), second.astype(np.int32), near, index_of)


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
def search_all(x, w, first, dims, grid, scale, shift, tables):
    """The index of the grid's vector, plus `shift`, that costs least for elements first … first + dims."""
    table, other = tables
    first_half, second_half = grid.first_half, grid.second_half
    _tabulate(x, w, first, dims // 2, grid.values, scale, shift, table)
    _tabulate(x, w, first + dims // 2, dims // 2, grid.values, scale, shift, other)
    # Four runs, so that none waits for the comparison before.
    a = b = c = d = splat(_HUGE)
    ai = bi = ci = di = splat_int(0)
    for n in range(0, len(first_half), 4):
        cost = load(table, item(first_half, n)) + load(other, item(second_half, n))
        ai = where(cost < a, splat_int(n), ai)
        a = minimum(cost, a)
        cost = load(table, item(first_half, n + 1)) + load(other, item(second_half, n + 1))
        bi = where(cost < b, splat_int(n + 1), bi)
        b = minimum(cost, b)
        cost = load(table, item(first_half, n + 2)) + load(other, item(second_half, n + 2))
        ci = where(cost < c, splat_int(n + 2), ci)
        c = minimum(cost, c)
        cost = load(table, item(first_half, n + 3)) + load(other, item(second_half, n + 3))
        di = where(cost < d, splat_int(n + 3), di)
        d = minimum(cost, d)
    ai = where(b < a, bi, ai)
    a = minimum(b, a)
    ci = where(d < c, di, ci)
    c = minimum(d, c)
    return where(c < a, ci, ai)


@part
def search_near(x, w, first, dims, grid, scale, shift, tables):
    """As `search_all`, among the vectors near the rounded elements."""
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
        one = halves & 0xFFFF
        two = halves >> 16
        cost = gather(table, one * LANES + lanes) + gather(other, two * LANES + lanes)
        less = cost < best
        best = where(less, cost, best)
        which = where(less, one + two * size, which)
    return gather(grid.index_of, which)


@part
def search(x, w, first, dims, grid, scale, shift, tables):
    """The index of the grid's vector, plus `shift`, that costs least for elements first … first + dims."""
    if len(grid.near) > 0:
        return search_near(x, w, first, dims, grid, scale, shift, tables)
    return search_all(x, w, first, dims, grid, scale, shift, tables)
