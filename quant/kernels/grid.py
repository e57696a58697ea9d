"""IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S: magnitudes are vectors of a grid, x ≈ ±d·scale·vector.

The search runs 16 super-blocks at a time, one in each lane. Scales are found as in `affine.py`, vectors as in
`search/nearest.py`. Layouts: `layouts/grid.py`.

IQ2_XXS, IQ2_XS and IQ3_XXS store seven signs for eight elements; the eighth makes the number of negative elements even.
When the number is odd, one element must take the wrong sign: the one with the smallest |x|·weight. From there on its
magnitude counts as negative.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np

from quant.kernels.formats import Floats, Format, Parts, register
from quant.kernels.layouts.grid import LAYOUTS
from quant.kernels.layouts.grids import grid_vectors
from quant.kernels.search.fitting import divide, flat_weights
from quant.kernels.search.nearest import Grid, prepare, search
from quant.kernels.search.odd_scales import BLOCK, SHARE, round_scales, stored_scale
from quant.kernels.vectors.compiler import kernel, part
from quant.kernels.vectors.half import from_half, to_half
from quant.kernels.vectors.simd import (
    HUGE,
    LANES,
    absolute,
    fma,
    gather,
    integers,
    load,
    maximum,
    read_tiles,
    splat,
    splat_int,
    store,
    tiles,
    where,
    write_tile,
)
from quant.types import QuantType


@part
def _take_signs(x, w, signs, even):
    """Replace x by its magnitudes, and write one byte of signs for each eight elements; `even` as in `_GridTraits`.

    Where `even` makes an element take the wrong sign, its magnitude in x becomes negative.
    """
    for eight in range(BLOCK // 8):
        byte = splat_int(0)
        count = splat_int(0)
        least = splat(HUGE)
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


class _GridSearch(NamedTuple):
    """Arguments of the search for the nearest vectors (`nearest.search`)."""

    grid: Grid
    dims: int
    """Elements of a vector: 8 or 4."""
    tables: tuple[Floats, Floats]
    """Memory for the costs of all first halves and of all second halves of a vector."""


@part
def _group_sums(x, w, first, size, scale, how, chosen):
    """Σw·v², Σw·v·|x| of a group whose vectors v are the nearest at this scale; their indices go to `chosen`."""
    wvv_sum = splat(0.0)
    wvx_sum = splat(0.0)
    for part_first in range(first, first + size, how.dims):
        index = search(x, w, part_first, how.dims, how.grid, scale, splat(0.0), how.tables)
        store(chosen, part_first // how.dims, index)
        at = index * how.dims
        for i in range(how.dims):
            v = gather(how.grid.vectors, at + i)
            wv = load(w, part_first + i) * v
            wvv_sum = fma(wv, v, wvv_sum)
            wvx_sum = fma(wv, load(x, part_first + i), wvx_sum)
    return wvv_sum, wvx_sum


@part
def _fit_groups(x, w, size, starts, how, scale, trial):
    """The best real scale of every group; the largest of them."""
    values = how.grid.values
    largest = splat(0.0)
    for g in range(BLOCK // size):
        peak = splat(0.0)
        for i in range(g * size, (g + 1) * size):
            peak = maximum(peak, load(x, i))
        best = splat(0.0)
        best_scale = splat(0.0)
        for n in range(len(starts)):
            wvv, wvx = _group_sums(x, w, g * size, size, peak * (starts[n] / values[len(values) - 1]), how, trial)
            s = divide(wvx, wvv)
            better = s * wvx > best
            best = where(better, s * wvx, best)
            best_scale = where(better, s, best_scale)
        store(scale, g, best_scale)
        largest = maximum(largest, best_scale)
    return largest


@kernel(
    "void(float32[::1], float32[::1], int64, boolean, float32, float32[::1], float32[::1], int32[::1], int32[::1],"
    "int64, float32[::1], int64, float32, uint16[::1], uint8[::1], uint16[::1], uint8[::1])"
)
def _search(
    source, weights, size, even, unit, values, vectors, near, index_of, dims, starts, rounds, share,
    levels, signs, d_out, scales,
):  # fmt: skip
    """Fill the parts of len(d_out) super-blocks, a multiple of 16.

    starts: candidates for a group's scale, as factors of largest element / largest value of the grid.
    """
    groups, count = BLOCK // size, BLOCK // dims
    half = len(values) ** (dims // 2)
    x, w = tiles(BLOCK)
    tables = np.empty(half * LANES, np.float32), np.empty(half * LANES, np.float32)
    how = _GridSearch(Grid(values, vectors, near, index_of), dims, tables)
    trial = np.empty(count * LANES, np.uint16)
    chosen = np.empty(count * LANES, np.uint16)
    sign_tile = np.empty(BLOCK // 8 * LANES, np.uint8)
    scale = np.empty(groups * LANES, np.float32)
    odds = np.empty(groups * LANES, np.float32)
    code_tile = np.empty(groups * LANES, np.uint8)
    for t in range(len(d_out) // LANES):
        read_tiles(source, weights, t, BLOCK, x, w)
        _take_signs(x, w, sign_tile, even)
        d = from_half(to_half(_fit_groups(x, w, size, starts, how, scale, trial) / (unit * 31))) * unit
        ax = splat(0.0)
        for _ in range(rounds):
            d, ax = round_scales(x, w, size, 15, unit, _group_sums, how, d, scale, odds, trial, chosen)
        store(d_out, t, stored_scale(x, w, unit, d, ax, share))
        for g in range(groups):
            store(code_tile, g, integers(load(odds, g)) >> 1)
        write_tile(chosen, t, count, levels)
        write_tile(sign_tile, t, BLOCK // 8, signs)
        write_tile(code_tile, t, groups, scales)


class _GridTraits(NamedTuple):
    """The properties by which the types differ."""

    size: int
    """Elements of a group."""
    even: bool
    """Whether the format makes the number of negative elements in eight even, and stores seven signs."""
    unit: float
    """A group's scale is d·unit·(2·code + 1)."""
    starts: int
    """Number of candidates for a group's scale."""


@cache
def _tables(type: QuantType) -> Grid:
    return prepare(grid_vectors(type))


def _searcher(type: QuantType, traits: _GridTraits) -> Callable[[Floats, Floats | None], Parts]:
    # The last candidate is for groups whose elements are all of one size: their vectors have the smallest value only.
    largest = grid_vectors(type).max() / grid_vectors(type).min()

    def run(x: Floats, weights: Floats | None) -> Parts:
        n, dims = len(x), grid_vectors(type).shape[1]
        levels, d = np.empty((n, BLOCK // dims), np.uint16), np.empty(n, np.uint16)
        signs, scales = np.empty((n, BLOCK // 8), np.uint8), np.empty((n, BLOCK // traits.size), np.uint8)
        starts = np.append(np.linspace(0.65, 0.95, traits.starts), largest).astype(np.float32)
        flat = levels.ravel(), signs.ravel(), d, scales.ravel()
        _search(
            x.ravel(), flat_weights(weights), traits.size, traits.even, traits.unit, *_tables(type), dims, starts,
            1, SHARE, *flat,
        )  # fmt: skip
        return Parts(levels, d.view(np.float16), scales=scales, signs=signs)

    return run


for _type, _traits in {
    QuantType.IQ2_XXS: _GridTraits(32, True, 1 / 8, 4),
    QuantType.IQ2_XS: _GridTraits(16, True, 1 / 8, 4),
    QuantType.IQ2_S: _GridTraits(16, False, 1 / 8, 4),
    QuantType.IQ3_XXS: _GridTraits(32, True, 1 / 4, 5),
    QuantType.IQ3_S: _GridTraits(32, False, 1.0, 4),
}.items():
    _limit = 65504.0 * 31 * _traits.unit * float(grid_vectors(_type).max())
    register(_type, Format(_searcher(_type, _traits), *LAYOUTS[_type], _limit), _search)
