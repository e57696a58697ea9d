"""IQ1_S and IQ1_M: x ≈ d·scale·(vector ± 1/8), vectors of eight −1, 0, 1 from a grid of 2048.

A scale is an odd number up to 15, and belongs to 32 (IQ1_S) or 16 (IQ1_M) elements. The sign of the shift belongs to
32 or 8 elements. Layouts: `layouts/grid.py`.

The search runs 16 super-blocks at a time, one in each lane:

1. Each group alone tries a row of candidate scales, with both shifts, and elements rounded one by one. The best counts.
2. At that scale, the nearest vectors of the grid (`search/nearest.py`) with both shifts give the best real scale.
3. The largest scale gives d. Each group tries the two odd multiples of d next to its scale, with both shifts. Then d is
   fitted to all groups together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np

from quant.kernels.formats import Floats, Format, Parts, register
from quant.kernels.layouts.grid import LAYOUTS, SHIFT
from quant.kernels.layouts.grids import grid_vectors
from quant.kernels.search.fitting import divide, flat_weights
from quant.kernels.search.nearest import Grid, prepare, search
from quant.kernels.search.odd_scales import BLOCK, SHARE, round_scales, stored_scale
from quant.kernels.vectors.compiler import kernel, part
from quant.kernels.vectors.half import from_half, to_half
from quant.kernels.vectors.simd import (
    LANES,
    absolute,
    fma,
    gather,
    integers,
    load,
    maximum,
    minimum,
    read_tiles,
    rint,
    splat,
    store,
    tiles,
    where,
    write_tile,
)
from quant.types import QuantType

_DIMS = 8
# Set in an index when the shift is negative: grids have 2048 vectors, so bit 11 is free.
_LOWER_BIT = 11
_LOWER = 1 << _LOWER_BIT


@part
def _cost(scale, wvv, wvx):
    """Σw·(x − scale·v)², less the constant Σw·x²."""
    return scale * fma(scale, wvv, wvx * -2)


@part
def _rounded_sums(x, w, first, count, inverse, shift):
    """Σw·v², Σw·v·x of `count` elements, each with its own nearest v of −1, 0, 1, plus shift."""
    wvv_sum = splat(0.0)
    wvx_sum = splat(0.0)
    for eight in range(first, first + count, _DIMS):
        vv = splat(0.0)
        vx = splat(0.0)
        for i in range(eight, eight + _DIMS):
            u = load(x, i)
            v = minimum(maximum(rint(fma(u, inverse, splat(-shift))), -1), 1) + shift
            wv = load(w, i) * v
            vv = fma(wv, v, vv)
            vx = fma(wv, u, vx)
        wvv_sum = wvv_sum + vv
        wvx_sum = wvx_sum + vx
    return wvv_sum, wvx_sum


@part
def _near_sums(x, w, first, grid, scale, shift, tables):
    """The index of the nearest vector plus shift, Σw·v², Σw·v·x."""
    index = search(x, w, first, _DIMS, grid, scale, splat(shift), tables)
    at = index * _DIMS
    wvv_sum = splat(0.0)
    wvx_sum = splat(0.0)
    for i in range(_DIMS):
        v = gather(grid.vectors, at + i) + shift
        wv = load(w, first + i) * v
        wvv_sum = fma(wv, v, wvv_sum)
        wvx_sum = fma(wv, load(x, first + i), wvx_sum)
    return index, wvv_sum, wvx_sum


class _ShiftedSearch(NamedTuple):
    """Arguments of the search for the nearest vectors (`nearest.search`)."""

    grid: Grid
    span: int
    """Elements that share a shift: 32 or 8."""
    tables: tuple[Floats, Floats]
    """Memory for the costs of all first halves and of all second halves of a vector."""


@part
def _group_sums(x, w, first, size, scale, how, chosen):
    """Σw·v², Σw·v·x of a group whose vectors v are the nearest at this scale, with the better shift.

    Their indices go to `chosen`, plus _LOWER when the shift is negative.
    """
    wvv_sum = splat(0.0)
    wvx_sum = splat(0.0)
    for run in range(first, first + size, how.span):
        upper_vv = splat(0.0)
        upper_vx = splat(0.0)
        lower_vv = splat(0.0)
        lower_vx = splat(0.0)
        for eight in range(run, run + how.span, _DIMS):
            index, vv, vx = _near_sums(x, w, eight, how.grid, scale, SHIFT, how.tables)
            other, other_vv, other_vx = _near_sums(x, w, eight, how.grid, scale, -SHIFT, how.tables)
            # Both indices in one word, until the better shift of the run is known.
            store(chosen, eight // _DIMS, index | other << 16)
            upper_vv = upper_vv + vv
            upper_vx = upper_vx + vx
            lower_vv = lower_vv + other_vv
            lower_vx = lower_vx + other_vx
        lower = _cost(scale, lower_vv, lower_vx) < _cost(scale, upper_vv, upper_vx)
        wvv_sum = wvv_sum + where(lower, lower_vv, upper_vv)
        wvx_sum = wvx_sum + where(lower, lower_vx, upper_vx)
        for eight in range(run // _DIMS, (run + how.span) // _DIMS):
            both = load(chosen, eight)
            store(chosen, eight, where(lower, both >> 16 | _LOWER, both & 0xFFFF))
    return wvv_sum, wvx_sum


@part
def _rough_sums(x, w, first, size, span, scale):
    """Σw·v², Σw·v·x of a group with each element rounded alone, the better shift for every `span` of them."""
    wvv_sum = splat(0.0)
    wvx_sum = splat(0.0)
    inverse = divide(splat(1.0), scale)
    for run in range(first, first + size, span):
        upper_vv, upper_vx = _rounded_sums(x, w, run, span, inverse, SHIFT)
        lower_vv, lower_vx = _rounded_sums(x, w, run, span, inverse, -SHIFT)
        lower = _cost(scale, lower_vv, lower_vx) < _cost(scale, upper_vv, upper_vx)
        wvv_sum = wvv_sum + where(lower, lower_vv, upper_vv)
        wvx_sum = wvx_sum + where(lower, lower_vx, upper_vx)
    return wvv_sum, wvx_sum


@part
def _fit_groups(x, w, size, starts, how, scale, trial):
    """Steps 1 and 2 for every group; the largest scale."""
    largest = splat(0.0)
    for g in range(BLOCK // size):
        peak = splat(0.0)
        for i in range(g * size, (g + 1) * size):
            peak = maximum(peak, absolute(load(x, i)))
        best = splat(0.0)
        best_scale = splat(0.0)
        for n in range(len(starts)):
            wvv, wvx = _rough_sums(x, w, g * size, size, how.span, peak * starts[n])
            s = divide(wvx, wvv)
            better = s * wvx > best
            best = where(better, s * wvx, best)
            best_scale = where(better, s, best_scale)
        wvv, wvx = _group_sums(x, w, g * size, size, best_scale, how, trial)
        best_scale = maximum(divide(wvx, wvv), 0)
        store(scale, g, best_scale)
        largest = maximum(largest, best_scale)
    return largest


@kernel(
    "void(float32[::1], float32[::1], int64, int64, float32[::1], float32[::1], int32[::1], int32[::1],"
    "float32[::1], int64, float32, uint16[::1], uint8[::1], uint16[::1], uint8[::1])"
)
def _search(
    source, weights, size, span, values, vectors, near, index_of, starts, rounds, share,
    levels, minima, d_out, scales,
):  # fmt: skip
    """Fill the parts of len(d_out) super-blocks, a multiple of 16."""
    groups, runs, eights = BLOCK // size, BLOCK // span, BLOCK // _DIMS
    x, w = tiles(BLOCK)
    tables = np.empty(81 * LANES, np.float32), np.empty(81 * LANES, np.float32)
    how = _ShiftedSearch(Grid(values, vectors, near, index_of), span, tables)
    trial, chosen = np.empty(eights * LANES, np.int32), np.empty(eights * LANES, np.int32)
    scale, odds = np.empty(groups * LANES, np.float32), np.empty(groups * LANES, np.float32)
    level_tile = np.empty(eights * LANES, np.uint16)
    shift_tile, code_tile = np.empty(runs * LANES, np.uint8), np.empty(groups * LANES, np.uint8)
    for t in range(len(d_out) // LANES):
        read_tiles(source, weights, t, BLOCK, x, w)
        d = from_half(to_half(_fit_groups(x, w, size, starts, how, scale, trial) / 15))
        ax = splat(0.0)
        for _ in range(rounds):
            d, ax = round_scales(x, w, size, 7, np.float32(1), _group_sums, how, d, scale, odds, trial, chosen)
        store(d_out, t, stored_scale(x, w, np.float32(1), d, ax, share))
        for i in range(eights):
            store(level_tile, i, load(chosen, i) & (_LOWER - 1))
        for i in range(runs):
            store(shift_tile, i, load(chosen, i * (span // _DIMS)) >> _LOWER_BIT)
        for g in range(groups):
            store(code_tile, g, integers(load(odds, g)) >> 1)
        write_tile(level_tile, t, eights, levels)
        write_tile(shift_tile, t, runs, minima)
        write_tile(code_tile, t, groups, scales)


@cache
def _tables() -> Grid:
    return prepare(grid_vectors(QuantType.IQ1_S))


def _searcher(size: int, span: int, starts: Floats) -> Callable[[Floats, Floats | None], Parts]:
    def run(x: Floats, weights: Floats | None) -> Parts:
        n = len(x)
        levels, d = np.empty((n, BLOCK // _DIMS), np.uint16), np.empty(n, np.uint16)
        minima, scales = np.empty((n, BLOCK // span), np.uint8), np.empty((n, BLOCK // size), np.uint8)
        flat = levels.ravel(), minima.ravel(), d, scales.ravel()
        _search(x.ravel(), flat_weights(weights), size, span, *_tables(), starts, 1, SHARE, *flat)
        return Parts(levels, d.view(np.float16), scales=scales, minima=minima)

    return run


_STARTS = np.linspace(0.4, 0.9, 5, dtype=np.float32)
register(QuantType.IQ1_S, Format(_searcher(32, 32, _STARTS), *LAYOUTS[QuantType.IQ1_S], 65504.0 * 15), _search)
register(QuantType.IQ1_M, Format(_searcher(16, 8, _STARTS), *LAYOUTS[QuantType.IQ1_M], 65504.0 * 15), _search)
