"""IQ4_NL and IQ4_XS: a level of four bits is the index of one of sixteen unevenly spaced values, x ≈ scale·value.

IQ4_NL has blocks of 32 with a float16 scale each. IQ4_XS has super-blocks of 256 in groups of 32, and a group's scale
is a signed number of six bits times a float16. Layouts: `layouts/whole.py`.

The search is the same as in `symmetric.py`, 16 blocks or super-blocks at a time, but for the rounding. The level of an
element comes from a table, indexed by element / scale in steps of a half. The values are whole numbers, so the
boundaries between them are multiples of a half, and lie on entries of the table.
"""

from __future__ import annotations

import numpy as np

from quant.kernels.formats import Floats, Format, Parts, register
from quant.kernels.layouts import whole as layout_whole
from quant.kernels.layouts.whole import IQ4_NL, IQ4_VALUES, IQ4_XS
from quant.kernels.search.fitting import flat_weights, quotient, stretch
from quant.kernels.search.signed_scales import fit_groups, round_scales
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

_SIZE = 32
_REACH = 256  # entries of the table on either side of 0, in steps of a half
_places = np.arange(-_REACH, _REACH + 1) / 2
_levels = np.abs(_places[:, None] - IQ4_VALUES).argmin(axis=1)
# By element / scale in steps of a half, from −_REACH on: the nearest value (float32), and its level (int32).
_TABLE = np.ascontiguousarray(IQ4_VALUES[_levels].astype(np.float32))
_LEVELS = np.ascontiguousarray(_levels.astype(np.int32))
# Stored scales of a group are −32 … 31.
_CODES = np.float32(32)
_LOWEST, _HIGHEST = np.float32(-127), np.float32(113)


@part
def _place(v, twice):
    """The index in the table of the value nearest to v; `twice` is 2 / scale."""
    return integers(minimum(maximum(rint(v * twice), -_REACH), _REACH)) + _REACH


@part
def _sums_at(x, w, first, twice, table):
    """Σw·q², Σw·q·x of a group with its nearest values q; `twice` is 2 / scale."""
    wqq_sum = splat(0.0)
    wqx_sum = splat(0.0)
    for i in range(first, first + _SIZE):
        v = load(x, i)
        q = gather(table, _place(v, twice))
        wq = load(w, i) * q
        wqq_sum = fma(wq, q, wqq_sum)
        wqx_sum = fma(wq, v, wqx_sum)
    return wqq_sum, wqx_sum


@part
def _sums(x, w, first, scale, table):
    """The same for a scale; the `sums` of `signed_scales`."""
    return _sums_at(x, w, first, quotient(splat(2.0), scale), table)


@part
def _fit_group(x, w, first, table, steps):
    """The best real scale of one group: candidates bring the largest element to about −127, or to about 113."""
    peak = load(x, first)
    for i in range(first + 1, first + _SIZE):
        v = load(x, i)
        peak = where(absolute(v) > absolute(peak), v, peak)
    best_scale = splat(0.0)
    best = splat(-1.0)
    for n in range(steps):
        # In turn: 1.14 … 0.87 times the lowest value, 0.86 … 1.13 times the highest.
        along = np.float32(n // 2) / np.float32(steps // 2)
        end = _LOWEST * (np.float32(1.14) - np.float32(0.3) * along)
        if n % 2 == 1:
            end = _HIGHEST * (np.float32(0.86) + np.float32(0.3) * along)
        wqq, wqx = _sums_at(x, w, first, quotient(splat(2 * end), peak), table)
        scale = quotient(wqx, wqq)
        gain = scale * wqx
        better = gain > best
        best = where(better, gain, best)
        best_scale = where(better, scale, best_scale)
    return best_scale


@part
def _fit_single(x, w, table, s):
    """The best d of a block without group scales, for the values that are nearest at scale `s`."""
    d = from_half(to_half(s))
    wqq, wqx = _sums(x, w, 0, d, table)
    return where(wqq > 0, from_half(to_half(wqx / wqq)), d)


@part
def _choose_levels(x, w, table, level_of, groups, scale, tile):
    """The levels, Σw·x² and Σw·x·x̂."""
    wxx = splat(0.0)
    wxh = splat(0.0)
    for g in range(groups):
        s = load(scale, g)
        wxq = splat(0.0)
        twice = quotient(splat(2.0), s)
        for i in range(g * _SIZE, (g + 1) * _SIZE):
            v = load(x, i)
            place = _place(v, twice)
            store(tile, i, gather(level_of, place))
            wx = load(w, i) * v
            wxx = fma(wx, v, wxx)
            wxq = fma(wx, gather(table, place), wxq)
        wxh = fma(s, wxq, wxh)
    return wxx, wxh


@kernel(
    "void(float32[::1], float32[::1], float32[::1], int32[::1], int64, int64, int64, float32,"
    "uint8[::1], uint16[::1], uint8[::1])"
)
def _search(source, weights, table, level_of, groups, steps, rounds, share, levels, d_out, scales):
    """Fill the parts of len(d_out) blocks, a multiple of 16; `rounds` counts only for blocks of several groups."""
    block = groups * _SIZE
    x, w = tiles(block)
    tile = np.empty(block * LANES, np.uint8)
    scale = np.empty(groups * LANES, np.float32)
    code = np.zeros(groups * LANES, np.float32)
    code_tile = np.empty(groups * LANES, np.uint8)
    for t in range(len(d_out) // LANES):
        read_tiles(source, weights, t, block, x, w)
        peak = fit_groups(x, w, _SIZE, groups, _fit_group, table, steps, scale)
        if groups == 1:
            d = _fit_single(x, w, table, peak)
            store(scale, 0, d)
        else:
            d = from_half(to_half(peak / -_CODES))
            for _ in range(rounds):
                d = round_scales(x, w, _SIZE, groups, _sums, table, _CODES, 2, d, scale, code)
        wxx, wxh = _choose_levels(x, w, table, level_of, groups, scale, tile)
        store(d_out, t, to_half(stretch(d, share, wxx, wxh)))
        for g in range(groups):
            store(code_tile, g, integers(load(code, g)) + 32)
        write_tile(tile, t, block, levels)
        write_tile(code_tile, t, groups, scales)


def _run(x: Floats, weights: Floats | None, rounds: int) -> Parts:
    levels, d, scales = (
        np.empty(x.shape, np.uint8),
        np.empty(len(x), np.uint16),
        np.empty((len(x), x.shape[1] // 32), np.uint8),
    )
    flat = levels.ravel(), d, scales.ravel()
    _search(x.ravel(), flat_weights(weights), _TABLE, _LEVELS, x.shape[1] // _SIZE, 18, rounds, 1.0, *flat)
    return Parts(levels, d.view(np.float16), scales=scales)


def _search_nl(x: Floats, weights: Floats | None) -> Parts:
    return _run(x, weights, 1)._replace(scales=np.empty((len(x), 0), np.uint8))


def _search_xs(x: Floats, weights: Floats | None) -> Parts:
    return _run(x, weights, 2)


register(QuantType.IQ4_NL, Format(_search_nl, *IQ4_NL, 65504.0 * 113), _search, *layout_whole.KERNELS)
register(QuantType.IQ4_XS, Format(_search_xs, *IQ4_XS, 65504.0 * 31 * 113), _search, *layout_whole.KERNELS)
