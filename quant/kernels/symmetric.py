"""Q3_K and Q6_K: super-blocks of 256 in sixteen groups of 16, x ≈ d·scale·level, levels and scales signed.

Levels have 3 or 6 bits, scales 6 or 8; d is float16. Layouts: `layouts/k.py`.

The search runs 16 super-blocks at a time, one in each lane, in the steps described in `affine.py`. Without minima, the
best scale for given levels is one division: Σw·l·x / Σw·l².
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from quant.kernels.formats import Floats, Format, Parts, register
from quant.kernels.layouts import k as layout_k
from quant.kernels.layouts.k import pack_q3, pack_q6, restore_q3, restore_q6, unpack_q3, unpack_q6
from quant.kernels.search.fitting import ROUNDER, Effort, flat_weights, quotient, stretch
from quant.kernels.search.signed_scales import fit_groups, round_scales
from quant.kernels.vectors.compiler import kernel, part
from quant.kernels.vectors.half import from_half, to_half
from quant.kernels.vectors.simd import (
    LANES,
    absolute,
    fma,
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

_BLOCK, _GROUPS, _SIZE = 256, 16, 16
_FEW = np.float32(4)  # the `bound` of Q3_K, which has few levels


@part
def _sums_at(x, w, first, inverse, bound):
    """Σw·l², Σw·l·x of a group with levels l = round(x·inverse), cut to −bound … bound − 1."""
    wll_sum = splat(0.0)
    wlx_sum = splat(0.0)
    for i in range(first, first + _SIZE):
        v = load(x, i)
        # Rounded by the addition: see ROUNDER.
        level = minimum(maximum(fma(v, inverse, ROUNDER), ROUNDER - bound), ROUNDER + bound - 1) - ROUNDER
        wl = load(w, i) * level
        wll_sum = fma(wl, level, wll_sum)
        wlx_sum = fma(wl, v, wlx_sum)
    return wll_sum, wlx_sum


@part
def _sums(x, w, first, scale, bound):
    """The same for a scale; the `sums` of `signed_scales`."""
    return _sums_at(x, w, first, quotient(splat(1.0), scale), bound)


@part
def _fit_group(x, w, first, bound, effort):
    """The best real scale of one group.

    Candidates bring the element of largest magnitude to about −bound. With few levels (Q3_K), every third candidate
    brings it to about bound − 1 instead.
    """
    peak = load(x, first)
    for i in range(first + 1, first + _SIZE):
        v = load(x, i)
        peak = where(absolute(v) > absolute(peak), v, peak)
    per_peak = quotient(splat(-1.0), peak)
    best_wll = splat(1.0)
    best_wlx = splat(0.0)
    for n in range(effort.steps + effort.polish):
        if n >= effort.steps:
            inverse = quotient(best_wll, best_wlx)
        elif bound > _FEW or n % 3 < 2:
            inverse = per_peak * (bound + effort.start + effort.step * np.float32(n))
        else:
            inverse = per_peak * (1 - bound - effort.start - effort.step * np.float32(n))
        wll, wlx = _sums_at(x, w, first, inverse, bound)
        # The best scale for these levels reduces the error by wlx² / wll.
        better = wlx * wlx * best_wll > best_wlx * best_wlx * wll
        best_wll = where(better, wll, best_wll)
        best_wlx = where(better, wlx, best_wlx)
    return best_wlx / best_wll


@part
def _choose_levels(x, w, bound, scale, tile):
    """The levels, Σw·x² and Σw·x·x̂."""
    wxx = splat(0.0)
    wxh = splat(0.0)
    for g in range(_GROUPS):
        s = load(scale, g)
        wxl = splat(0.0)
        inverse = quotient(splat(1.0), s)
        for i in range(g * _SIZE, (g + 1) * _SIZE):
            v = load(x, i)
            level = minimum(maximum(rint(v * inverse), -bound), bound - 1)
            store(tile, i, integers(level + bound))
            wx = load(w, i) * v
            wxx = fma(wx, v, wxx)
            wxl = fma(wx, level, wxl)
        wxh = fma(s, wxl, wxh)
    return wxx, wxh


@kernel(
    "void(float32[::1], float32[::1], float32, float32, float32, float32, int64, int64, int64, int64, float32,"
    "uint8[::1], uint16[::1], uint8[::1])"
)
def _search(source, weights, bound, codes, start, step, steps, polish, rounds, reach, share, levels, d_out, scales):
    """Fill the parts of len(d_out) super-blocks, a multiple of 16. Levels get their offset, scales none."""
    effort = Effort(start, step, steps, polish, rounds, reach, share)
    x, w = tiles(_BLOCK)
    tile = np.empty(_BLOCK * LANES, np.uint8)
    scale = np.empty(_GROUPS * LANES, np.float32)
    code = np.empty(_GROUPS * LANES, np.float32)
    code_tile = np.empty(_GROUPS * LANES, np.uint8)
    for t in range(len(d_out) // LANES):
        read_tiles(source, weights, t, _BLOCK, x, w)
        peak = fit_groups(x, w, _SIZE, _GROUPS, _fit_group, bound, effort, scale)
        d = from_half(to_half(peak / -codes))
        for _ in range(rounds):
            d = round_scales(x, w, _SIZE, _GROUPS, _sums, bound, codes, reach, d, scale, code)
        wxx, wxh = _choose_levels(x, w, bound, scale, tile)
        store(d_out, t, to_half(stretch(d, share, wxx, wxh)))
        for g in range(_GROUPS):
            store(code_tile, g, integers(load(code, g)))
        write_tile(tile, t, _BLOCK, levels)
        write_tile(code_tile, t, _GROUPS, scales)


def _searcher(bound: int, codes: int, plain: Effort, weighted: Effort) -> Callable[[Floats, Floats | None], Parts]:
    def search(x: Floats, weights: Floats | None) -> Parts:
        n = len(x)
        d, levels, scales = np.empty(n, np.uint16), np.empty((n, _BLOCK), np.uint8), np.empty((n, _GROUPS), np.uint8)
        effort = plain if weights is None else weighted
        _search(x.ravel(), flat_weights(weights), bound, codes, *effort, levels.ravel(), d, scales.ravel())
        if bound == 4:
            scales += 32  # stored with an offset, unlike Q6_K's
        return Parts(levels, d.view(np.float16), scales=scales)

    return search


_Q3 = _searcher(4, 32, Effort(-0.7, 0.2, 8, 0, 1, 1, 1.0), Effort(-1.2, 0.2, 15, 0, 1, 1, 0.4))
_Q6 = _searcher(32, 128, Effort(-6.0, 0.6, 20, 1, 2, 1, 1.0), Effort(-8.0, 0.8, 20, 1, 2, 1, 1.0))
register(QuantType.Q3_K, Format(_Q3, pack_q3, unpack_q3, restore_q3, 65504.0 * 31 * 3), _search, *layout_k.SYMMETRIC)
register(QuantType.Q6_K, Format(_Q6, pack_q6, unpack_q6, restore_q6, 65504.0 * 127 * 31), _search, *layout_k.SYMMETRIC)
