"""IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S: magnitudes are vectors of a grid, x ≈ ±d·scale·vector.

The search runs 16 super-blocks at a time, one in each lane; scales are found as in `affine.py`, vectors as in
`nearest.py`.

Where the format stores only seven signs for eight elements and the eighth would be wrong, the element whose sign costs
least takes the wrong one: its magnitude counts as negative from there on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np

from quant.kernels.compiler import kernel, part
from quant.kernels.fitting import divide, flat_weights, stretch
from quant.kernels.formats import Floats, Format, Parts, register
from quant.kernels.half import from_half, to_half
from quant.kernels.layout_grid import LAYOUTS, grid_vectors
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
    splat,
    splat_int,
    store,
    transpose,
    where,
)
from quant.types import QuantType

_BLOCK = 256
_CODES = np.float32(15)
_SHARE = 0.85
_HUGE = np.float32(3e38)


@part
def _take_signs(x, w, signs, even):
    """Turn x into magnitudes; one byte of signs for each eight elements."""
    for eight in range(_BLOCK // 8):
        byte = splat_int(0)
        count = splat_int(0)
        least = splat(_HUGE)
        which = splat_int(0)
        for i in range(8):
            v = load(x, eight * 8 + i)
            size = absolute(v)
            cost = size * load(w, eight * 8 + i)
            bit = where(v < 0, splat_int(1), splat_int(0))
            byte = byte | bit << i
            count = count + bit
            less = cost < least
            least = where(less, cost, least)
            which = where(less, splat_int(i), which)
            store(x, eight * 8 + i, size)
        if even:
            odd = (count & 1) != 0
            for i in range(8):
                flip = odd & (which == i)
                size = load(x, eight * 8 + i)
                store(x, eight * 8 + i, where(flip, -size, size))
                byte = byte ^ where(flip, splat_int(1 << i), splat_int(0))
        store(signs, eight, byte)


@part
def _group_sums(x, w, first, size, dims, grid, scale, tables, chosen):
    """Σw·v², Σw·v·|x| of a group whose vectors v are the nearest at this scale; their indices go to `chosen`."""
    wvv_sum = splat(0.0)
    wvx_sum = splat(0.0)
    for part_first in range(first, first + size, dims):
        index = search(x, w, part_first, dims, grid, scale, splat(0.0), tables)
        store(chosen, part_first // dims, index)
        at = index * dims
        for i in range(dims):
            v = gather(grid.vectors, at + i)
            wv = load(w, part_first + i) * v
            wvv_sum = fma(wv, v, wvv_sum)
            wvx_sum = fma(wv, load(x, part_first + i), wvx_sum)
    return wvv_sum, wvx_sum


@kernel(
    "void(float32[::1], float32[::1], int64, boolean, float32, float32[::1], float32[::1], int32[::1], int32[::1],"
    "int64, float32[::1], int64, float32, uint16[::1], uint8[::1], uint16[::1], uint8[::1])"
)
def _search(
    source, weights, size, even, unit, values, vectors, near, index_of, dims, starts, rounds, share,
    levels, signs, d_out, scales,
):  # fmt: skip
    """Fill the parts of len(d_out) super-blocks, a multiple of 16.

    starts: candidates for a group's scale, in shares of the one that takes its largest element to the largest value.
    """
    grid = Grid(values, vectors, near, index_of)
    groups = _BLOCK // size
    half = len(values) ** (dims // 2)
    x = np.empty(_BLOCK * LANES, np.float32)
    w = np.ones(_BLOCK * LANES, np.float32)
    weighted = len(weights) > 0
    tables = np.empty(half * LANES, np.float32), np.empty(half * LANES, np.float32)
    trial = np.empty(_BLOCK // dims * LANES, np.uint16)
    chosen = np.empty(_BLOCK // dims * LANES, np.uint16)
    sign_tile = np.empty(_BLOCK // 8 * LANES, np.uint8)
    scale = np.empty(groups * LANES, np.float32)
    code = np.empty(groups * LANES, np.float32)
    for t in range(len(d_out) // LANES):
        base = t * LANES * _BLOCK
        for i in range(0, _BLOCK, LANES):
            transpose(source, base + i, _BLOCK, x, i * LANES, LANES)
            if weighted:
                transpose(weights, base + i, _BLOCK, w, i * LANES, LANES)
        _take_signs(x, w, sign_tile, even)
        largest = splat(0.0)
        for g in range(groups):
            peak = splat(0.0)
            for i in range(g * size, (g + 1) * size):
                peak = maximum(peak, load(x, i))
            best = splat(0.0)
            best_scale = splat(0.0)
            for n in range(len(starts)):
                s = peak * (starts[n] / values[len(values) - 1])
                wvv, wvx = _group_sums(
                    x, w, g * size, size, dims, grid, s, tables, trial
                )  # fmt: skip
                s = divide(wvx, wvv)
                better = s * wvx > best
                best = where(better, s * wvx, best)
                best_scale = where(better, s, best_scale)
            store(scale, g, best_scale)
            largest = maximum(largest, best_scale)
        d = from_half(to_half(largest / (unit * 31))) * unit
        ax = splat(0.0)
        for _ in range(rounds):
            ax = splat(0.0)
            aa = splat(0.0)
            for g in range(groups):
                below = floor((divide(load(scale, g), d) - 1) * np.float32(0.5))
                best = splat(_HUGE)
                best_odd = splat(1.0)
                best_wvv = splat(0.0)
                best_wvx = splat(0.0)
                for n in range(2):
                    odd = minimum(maximum(below + n, 0), _CODES) * 2 + 1
                    s = d * odd
                    wvv, wvx = _group_sums(
                        x, w, g * size, size, dims, grid, s, tables, trial
                    )  # fmt: skip
                    error = s * fma(s, wvv, wvx * -2)
                    better = error < best
                    best = where(better, error, best)
                    best_odd = where(better, odd, best_odd)
                    best_wvv = where(better, wvv, best_wvv)
                    best_wvx = where(better, wvx, best_wvx)
                    for i in range(g * (size // dims), (g + 1) * (size // dims)):
                        store(chosen, i, where(better, load(trial, i), load(chosen, i)))
                store(code, g, best_odd)
                ax = fma(best_odd, best_wvx, ax)
                aa = fma(best_odd * best_odd, best_wvv, aa)
            d = where(ax > 0, from_half(to_half(ax / (aa * unit))) * unit, d)
            for g in range(groups):
                store(scale, g, d * load(code, g))
        wxx = splat(0.0)
        for i in range(_BLOCK):
            v = load(x, i)
            wxx = fma(load(w, i) * v, v, wxx)
        store(d_out, t, to_half(stretch(d, share, wxx, d * ax) / unit))
        for lane in range(LANES):
            block = t * LANES + lane
            for i in range(_BLOCK // dims):
                levels[block * (_BLOCK // dims) + i] = chosen[i * LANES + lane]
            for i in range(groups):
                scales[block * groups + i] = np.uint8((code[i * LANES + lane] - 1) * np.float32(0.5))
            for i in range(_BLOCK // 8):
                signs[block * (_BLOCK // 8) + i] = sign_tile[i * LANES + lane]


class _Shape(NamedTuple):
    """What distinguishes the types."""

    size: int
    """Elements of a group."""
    even: bool
    """Is the number of negative elements in eight always even?"""
    unit: float
    """A group's scale is d·unit·(2·code + 1)."""
    starts: int
    """Candidates for a group's scale."""


@cache
def _tables(type: QuantType) -> Grid:
    return prepare(grid_vectors(type))


def _searcher(type: QuantType, shape: _Shape) -> Callable[[Floats, Floats | None], Parts]:
    # The last candidate is for groups whose elements are all of one size: their vectors have the smallest value only.
    largest = grid_vectors(type).max() / grid_vectors(type).min()

    def run(x: Floats, weights: Floats | None) -> Parts:
        n, dims = len(x), grid_vectors(type).shape[1]
        levels, d = np.empty((n, _BLOCK // dims), np.uint16), np.empty(n, np.uint16)
        signs, scales = np.empty((n, _BLOCK // 8), np.uint8), np.empty((n, _BLOCK // shape.size), np.uint8)
        starts = np.append(np.linspace(0.65, 0.95, shape.starts), largest).astype(np.float32)
        flat = levels.ravel(), signs.ravel(), d, scales.ravel()
        _search(
            x.ravel(), flat_weights(weights), shape.size, shape.even, shape.unit, *_tables(type), dims, starts,
            1, _SHARE, *flat,
        )  # fmt: skip
        return Parts(levels, d.view(np.float16), scales=scales, signs=signs)

    return run


for _type, _shape in {
    QuantType.IQ2_XXS: _Shape(32, True, 1 / 8, 4),
    QuantType.IQ2_XS: _Shape(16, True, 1 / 8, 4),
    QuantType.IQ2_S: _Shape(16, False, 1 / 8, 4),
    QuantType.IQ3_XXS: _Shape(32, True, 1 / 4, 5),
    QuantType.IQ3_S: _Shape(32, False, 1.0, 4),
}.items():
    _limit = 65504.0 * 31 * _shape.unit * float(grid_vectors(_type).max())
    register(_type, Format(_searcher(_type, _shape), *LAYOUTS[_type], _limit))

KERNELS = (_search,)
