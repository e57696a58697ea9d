"""IQ1_S and IQ1_M: x ≈ d·scale·(vector ± 1/8), vectors of eight −1, 0, 1 from a grid of 2048.

Scales are odd numbers to 15, one for each 32 (IQ1_S) or 16 (IQ1_M) elements; the sign of the shift belongs to 32 or
to 8 elements.

The search runs 16 super-blocks at a time, one in each lane:
1. each group by itself: a row of candidate scales, elements rounded each for itself, with either shift; the best;
2. with that scale the nearest vectors of the grid (`nearest.py`), with either shift, and the best real scale for them;
3. d from the largest scale; for each group the two odd multiples of d next to its scale, with either shift; then the
   best d for all groups together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from quant.kernels.compiler import kernel, part
from quant.kernels.fitting import divide, flat_weights, stretch
from quant.kernels.formats import Floats, Format, Parts, register
from quant.kernels.half import from_half, to_half
from quant.kernels.layout_grid import LAYOUTS, SHIFT, grid_vectors
from quant.kernels.nearest import Grid, prepare, search
from quant.kernels.simd import (
    LANES,
    absolute,
    floor,
    fma,
    gather,
    load,
    maximum,
    minimum,
    rint,
    splat,
    splat_int,
    store,
    transpose,
    where,
)
from quant.types import QuantType

_BLOCK, _DIMS = 256, 8
_SHARE = 0.85
_HUGE = np.float32(3e38)


@part
def _rounded_sums(x, w, first, inverse, shift):
    """Σw·v², Σw·v·x of eight elements, each with its own nearest v of −1, 0, 1, plus shift."""
    wvv_sum = splat(0.0)
    wvx_sum = splat(0.0)
    for i in range(first, first + _DIMS):
        u = load(x, i)
        v = minimum(maximum(rint(fma(u, inverse, splat(-shift))), -1), 1) + shift
        wv = load(w, i) * v
        wvv_sum = fma(wv, v, wvv_sum)
        wvx_sum = fma(wv, u, wvx_sum)
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


@part
def _group_sums(x, w, first, size, span, grid, scale, exact, tables, chosen, shifts):
    """Σw·v², Σw·v·x of a group at this scale, each `span` elements with the better shift.

    With `exact` the vectors are the grid's, their indices and shifts are stored; else each element is rounded alone.
    """
    wvv_sum = splat(0.0)
    wvx_sum = splat(0.0)
    inverse = divide(splat(1.0), scale)
    for run in range(first, first + size, span):
        upper_vv = splat(0.0)
        upper_vx = splat(0.0)
        lower_vv = splat(0.0)
        lower_vx = splat(0.0)
        for eight in range(run, run + span, _DIMS):
            if exact:
                index, vv, vx = _near_sums(x, w, eight, grid, scale, SHIFT, tables)
                other, other_vv, other_vx = _near_sums(x, w, eight, grid, scale, -SHIFT, tables)
                store(chosen, eight // _DIMS, index | other << 16)
            else:
                vv, vx = _rounded_sums(x, w, eight, inverse, SHIFT)
                other_vv, other_vx = _rounded_sums(x, w, eight, inverse, -SHIFT)
            upper_vv = upper_vv + vv
            upper_vx = upper_vx + vx
            lower_vv = lower_vv + other_vv
            lower_vx = lower_vx + other_vx
        lower = scale * fma(scale, lower_vv, lower_vx * -2) < scale * fma(scale, upper_vv, upper_vx * -2)
        wvv_sum = wvv_sum + where(lower, lower_vv, upper_vv)
        wvx_sum = wvx_sum + where(lower, lower_vx, upper_vx)
        if exact:
            store(shifts, run // span, where(lower, splat_int(1), splat_int(0)))
            for eight in range(run // _DIMS, (run + span) // _DIMS):
                both = load(chosen, eight)
                store(chosen, eight, where(lower, both >> 16, both & 0xFFFF))
    return wvv_sum, wvx_sum


@kernel(
    "void(float32[::1], float32[::1], int64, int64, float32[::1], float32[::1], int32[::1], int32[::1],"
    "float32[::1], int64, float32, uint16[::1], uint8[::1], uint16[::1], uint8[::1])"
)
def _search(
    source, weights, size, span, values, vectors, near, index_of, starts, rounds, share,
    levels, minima, d_out, scales,
):  # fmt: skip
    """Fill the parts of len(d_out) super-blocks, a multiple of 16.

    starts: candidates for a group's scale, in shares of the one that takes its largest element to 1.
    """
    grid = Grid(values, vectors, near, index_of)
    groups, runs, eights = _BLOCK // size, _BLOCK // span, _BLOCK // _DIMS
    x = np.empty(_BLOCK * LANES, np.float32)
    w = np.ones(_BLOCK * LANES, np.float32)
    weighted = len(weights) > 0
    tables = np.empty(81 * LANES, np.float32), np.empty(81 * LANES, np.float32)
    trial, trial_shifts = np.empty(eights * LANES, np.int32), np.empty(runs * LANES, np.int32)
    chosen, shifts = np.empty(eights * LANES, np.int32), np.empty(runs * LANES, np.int32)
    scale = np.empty(groups * LANES, np.float32)
    code = np.empty(groups * LANES, np.float32)
    for t in range(len(d_out) // LANES):
        base = t * LANES * _BLOCK
        for i in range(0, _BLOCK, LANES):
            transpose(source, base + i, _BLOCK, x, i * LANES, LANES)
            if weighted:
                transpose(weights, base + i, _BLOCK, w, i * LANES, LANES)
        largest = splat(0.0)
        for g in range(groups):
            peak = splat(0.0)
            for i in range(g * size, (g + 1) * size):
                peak = maximum(peak, absolute(load(x, i)))
            best = splat(0.0)
            best_scale = splat(0.0)
            for n in range(len(starts)):
                s = peak * starts[n]
                wvv, wvx = _group_sums(x, w, g * size, size, span, grid, s, False, tables, trial, trial_shifts)
                s = divide(wvx, wvv)
                better = s * wvx > best
                best = where(better, s * wvx, best)
                best_scale = where(better, s, best_scale)
            wvv, wvx = _group_sums(x, w, g * size, size, span, grid, best_scale, True, tables, trial, trial_shifts)
            best_scale = maximum(divide(wvx, wvv), 0)
            store(scale, g, best_scale)
            largest = maximum(largest, best_scale)
        d = from_half(to_half(largest / 15))
        ax = splat(0.0)
        for _ in range(rounds):
            ax = splat(0.0)
            aa = splat(0.0)
            for g in range(groups):
                below = floor((divide(load(scale, g), d) - 1) * np.float32(0.5))
                best = splat(_HUGE)
                best_odd = splat(1.0)
                best_vv = splat(0.0)
                best_vx = splat(0.0)
                for n in range(2):
                    odd = minimum(maximum(below + n, 0), 7) * 2 + 1
                    s = d * odd
                    wvv, wvx = _group_sums(x, w, g * size, size, span, grid, s, True, tables, trial, trial_shifts)
                    error = s * fma(s, wvv, wvx * -2)
                    better = error < best
                    best = where(better, error, best)
                    best_odd = where(better, odd, best_odd)
                    best_vv = where(better, wvv, best_vv)
                    best_vx = where(better, wvx, best_vx)
                    for i in range(g * size // _DIMS, (g + 1) * size // _DIMS):
                        store(chosen, i, where(better, load(trial, i), load(chosen, i)))
                    for i in range(g * size // span, (g + 1) * size // span):
                        store(shifts, i, where(better, load(trial_shifts, i), load(shifts, i)))
                store(code, g, best_odd)
                ax = fma(best_odd, best_vx, ax)
                aa = fma(best_odd * best_odd, best_vv, aa)
            d = where(ax > 0, from_half(to_half(ax / aa)), d)
            for g in range(groups):
                store(scale, g, d * load(code, g))
        wxx = splat(0.0)
        for i in range(_BLOCK):
            v = load(x, i)
            wxx = fma(load(w, i) * v, v, wxx)
        store(d_out, t, to_half(stretch(d, share, wxx, d * ax)))
        for lane in range(LANES):
            block = t * LANES + lane
            for i in range(eights):
                levels[block * eights + i] = chosen[i * LANES + lane]
            for i in range(runs):
                minima[block * runs + i] = shifts[i * LANES + lane]
            for i in range(groups):
                scales[block * groups + i] = np.uint8((code[i * LANES + lane] - 1) * np.float32(0.5))


@cache
def _tables() -> Grid:
    return prepare(grid_vectors(QuantType.IQ1_S))


def _searcher(size: int, span: int, starts: Floats) -> Callable[[Floats, Floats | None], Parts]:
    def run(x: Floats, weights: Floats | None) -> Parts:
        n = len(x)
        levels, d = np.empty((n, _BLOCK // _DIMS), np.uint16), np.empty(n, np.uint16)
        minima, scales = np.empty((n, _BLOCK // span), np.uint8), np.empty((n, _BLOCK // size), np.uint8)
        flat = levels.ravel(), minima.ravel(), d, scales.ravel()
        _search(x.ravel(), flat_weights(weights), size, span, *_tables(), starts, 1, _SHARE, *flat)
        return Parts(levels, d.view(np.float16), scales=scales, minima=minima)

    return run


_STARTS = np.linspace(0.4, 0.9, 5, dtype=np.float32)
register(QuantType.IQ1_S, Format(_searcher(32, 32, _STARTS), *LAYOUTS[QuantType.IQ1_S], 65504.0 * 15))
register(QuantType.IQ1_M, Format(_searcher(16, 8, _STARTS), *LAYOUTS[QuantType.IQ1_M], 65504.0 * 15))

KERNELS = (_search,)
