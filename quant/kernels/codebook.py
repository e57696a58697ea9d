"""IQ4_NL and IQ4_XS: a level of four bits names one of sixteen unevenly spaced values, x ≈ scale·value.

IQ4_NL has blocks of 32 with a float16 scale of their own, IQ4_XS super-blocks of 256 in groups of 32, whose scales are
six signed bits times a float16.

The search is that of `symmetric.py`, 16 blocks or super-blocks at a time; only that a level is found in a table by the
element's place between −127 and 113, in steps of a half, so that the boundaries between levels lie on entries.
"""

from __future__ import annotations

import numpy as np

from quant.kernels import layout_whole
from quant.kernels.compiler import kernel, part
from quant.kernels.fitting import flat_weights, quotient, stretch
from quant.kernels.formats import Floats, Format, Parts, register
from quant.kernels.half import from_half, to_half
from quant.kernels.layout_whole import IQ4_NL, IQ4_VALUES, IQ4_XS
from quant.kernels.simd import (
    LANES,
    absolute,
    fma,
    gather,
    integers,
    load,
    maximum,
    minimum,
    rint,
    splat,
    store,
    transpose,
    where,
)
from quant.types import QuantType

_SIZE = 32
_REACH = 256  # of the table, in halves, to either side of 0
_places = np.arange(-_REACH, _REACH + 1) / 2
_levels = np.abs(_places[:, None] - IQ4_VALUES).argmin(axis=1)
_TABLE = np.ascontiguousarray(IQ4_VALUES[_levels].astype(np.float32))
_LEVELS = np.ascontiguousarray(_levels.astype(np.int32))
_LOWEST, _HIGHEST = np.float32(-127), np.float32(113)


@part
def _place(v, twice):
    """The table's entry for v; `twice` is 2 / scale."""
    return integers(minimum(maximum(rint(v * twice), -_REACH), _REACH)) + _REACH


@part
def _sums(x, w, table, first, twice):
    """Σw·q², Σw·q·x of a group with its nearest values q."""
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
def _fit_group(x, w, table, first, steps):
    """The best real scale of one group. The largest element goes to about −127, or, the other way round, to 113."""
    peak = load(x, first)
    for i in range(first + 1, first + _SIZE):
        v = load(x, i)
        peak = where(absolute(v) > absolute(peak), v, peak)
    best_scale = splat(0.0)
    best = splat(-1.0)
    for n in range(steps):
        # −1.12 … −0.84 and 0.86 … 1.12 of the ends, in turn
        along = np.float32(n // 2) / np.float32(steps // 2)
        end = _LOWEST * (np.float32(1.14) - np.float32(0.3) * along)
        if n % 2 == 1:
            end = _HIGHEST * (np.float32(0.86) + np.float32(0.3) * along)
        wqq, wqx = _sums(x, w, table, first, quotient(splat(2 * end), peak))
        scale = quotient(wqx, wqq)
        gain = scale * wqx
        better = gain > best
        best = where(better, gain, best)
        best_scale = where(better, scale, best_scale)
    return best_scale


@part
def _refine_group(x, w, table, first, d, scale, reach):
    """The best whole multiple of d near a group's scale; and its sums."""
    code = minimum(maximum(rint(quotient(scale, d)), -32), 31)
    best = splat(3e38)
    best_code = code
    best_wqq = splat(0.0)
    best_wqx = splat(0.0)
    for n in range(-reach, reach + 1):
        trial = minimum(maximum(code + n, -32), 31)
        s = d * trial
        wqq, wqx = _sums(x, w, table, first, quotient(splat(2.0), s))
        error = s * fma(s, wqq, wqx * -2)
        better = error < best
        best = where(better, error, best)
        best_code = where(better, trial, best_code)
        best_wqq = where(better, wqq, best_wqq)
        best_wqx = where(better, wqx, best_wqx)
    return best_code, best_wqq, best_wqx


@kernel(
    "void(float32[::1], float32[::1], float32[::1], int32[::1], int64, int64, int64, float32,"
    "uint8[::1], uint16[::1], uint8[::1])"
)
def _search(source, weights, table, level_of, groups, steps, rounds, share, levels, d_out, scales):
    """Fill the parts of len(d_out) blocks, a multiple of 16. A single group has no scale besides d."""
    block = groups * _SIZE
    x = np.empty(block * LANES, np.float32)
    w = np.ones(block * LANES, np.float32)
    weighted = len(weights) > 0
    tile = np.empty(block * LANES, np.uint8)
    scale = np.empty(groups * LANES, np.float32)
    code = np.ones(groups * LANES, np.float32)
    for t in range(len(d_out) // LANES):
        base = t * LANES * block
        for i in range(0, block, LANES):
            transpose(source, base + i, block, x, i * LANES, LANES)
            if weighted:
                transpose(weights, base + i, block, w, i * LANES, LANES)
        peak = splat(0.0)
        for g in range(groups):
            s = _fit_group(x, w, table, g * _SIZE, steps)
            store(scale, g, s)
            peak = where(absolute(s) > absolute(peak), s, peak)
        d = from_half(to_half(peak / -32 if groups > 1 else peak))
        for _ in range(rounds):
            ax = splat(0.0)
            aa = splat(0.0)
            for g in range(groups):
                if groups > 1:
                    c, wqq, wqx = _refine_group(x, w, table, g * _SIZE, d, load(scale, g), 2)
                else:
                    wqq, wqx = _sums(x, w, table, 0, quotient(splat(2.0), d))
                    c = splat(1.0)
                store(code, g, c)
                ax = fma(c, wqx, ax)
                aa = fma(c * c, wqq, aa)
            d = where(aa > 0, from_half(to_half(ax / aa)), d)
            for g in range(groups):
                store(scale, g, d * load(code, g))
        wxx = splat(0.0)
        wxh = splat(0.0)
        for g in range(groups):
            s = d * load(code, g)
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
        store(d_out, t, to_half(stretch(d, share, wxx, wxh)))
        for i in range(0, block, LANES):
            transpose(tile, i * LANES, LANES, levels, base + i, block)
        for g in range(groups):
            for k in range(LANES):
                scales[(t * LANES + k) * groups + g] = np.uint8(code[g * LANES + k] + 32)


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


register(QuantType.IQ4_NL, Format(_search_nl, *IQ4_NL, 65504.0 * 113))
register(QuantType.IQ4_XS, Format(_search_xs, *IQ4_XS, 65504.0 * 31 * 113))

KERNELS = (_search, *layout_whole.KERNELS)
