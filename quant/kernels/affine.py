"""Q2_K, Q4_K, Q5_K: super-blocks of 256 in groups of 16 or 32, x ≈ d·scale·level − dmin·minimum.

Levels have 2, 4 or 5 bits, scales and minima 4 (Q2_K) or 6; d and dmin are float16. Layouts: `layouts/k.py`.

The search runs 16 super-blocks at a time, one in each lane:

1. Each group alone tries a row of candidate scales. A candidate gives levels by rounding, and these levels give the
   best real scale and minimum (weighted least squares).
2. The largest scale and minimum of the groups give d and dmin.
3. A stored scale is a whole multiple of d. Each group tries the multiples next to its scale, each with its levels and
   then with its best multiple of dmin. Then d and dmin are fitted to all groups together. This step is repeated.
4. Levels are rounded for the final d and dmin, which are then enlarged a little (`fitting.stretch`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from quant.kernels.formats import Floats, Format, Parts, register
from quant.kernels.layouts import k as layout_k
from quant.kernels.layouts.k import pack_q2, pack_q4, pack_q5, restore_affine, unpack_q2, unpack_q4, unpack_q5
from quant.kernels.search.fitting import Effort, affine_error, affine_fit, affine_sums, divide, flat_weights, stretch
from quant.kernels.vectors.compiler import kernel, part
from quant.kernels.vectors.half import from_half, to_half
from quant.kernels.vectors.simd import (
    HUGE,
    LANES,
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

_BLOCK = 256


@part
def _fit_group(x, w, first, size, top, effort):
    """The best real scale and minimum of the group at element `first`, and Σw, Σw·x; `top` is the largest level."""
    low = splat(0.0)
    high = load(x, first)
    w_sum = splat(0.0)
    wx_sum = splat(0.0)
    for i in range(first, first + size):
        v = load(x, i)
        weight = load(w, i)
        low = minimum(low, v)
        high = maximum(high, v)
        w_sum = w_sum + weight
        wx_sum = fma(weight, v, wx_sum)
    span = high - low
    per_span = divide(splat(1.0), span)
    best_scale = span / top
    best_low = -low
    best = splat(HUGE)
    for n in range(effort.steps + effort.polish):
        if n < effort.steps:
            inverse = per_span * (top + effort.start + effort.step * np.float32(n))
            offset = -low * inverse
        else:
            inverse = divide(splat(1.0), best_scale)
            offset = best_low * inverse
        wl, wll, wlx = affine_sums(x, w, first, size, inverse, offset, top)
        scale, minus, fine = affine_fit(wl, wll, wlx, w_sum, wx_sum)
        error = affine_error(scale, minus, wx_sum, w_sum, wl, wll, wlx)
        better = (error < best) & fine
        best = where(better, error, best)
        best_scale = where(better, scale, best_scale)
        best_low = where(better, minus, best_low)
    return best_scale, best_low, w_sum, wx_sum


@part
def _refine_group(x, w, first, size, top, codes, d, dmin, scale, low, reach, w_sum, wx_sum):
    """The best multiples of d and dmin, 0 … `codes`, near a group's scale and minimum; and Σw·l, Σw·l², Σw·l·x."""
    code = minimum(maximum(rint(divide(scale, d)), 0), codes)
    per_low = divide(splat(1.0), w_sum * dmin)
    best = splat(HUGE)
    best_code = code
    best_low = splat(0.0)
    best_wl = splat(0.0)
    best_wll = splat(0.0)
    best_wlx = splat(0.0)
    for n in range(-reach, reach + 1):
        trial = minimum(maximum(code + n, 0), codes)
        s = d * trial
        inverse = divide(splat(1.0), s)
        wl, wll, wlx = affine_sums(x, w, first, size, inverse, low * inverse, top)
        m = minimum(maximum(rint(fma(s, wl, -wx_sum) * per_low), 0), codes)
        error = affine_error(s, m * dmin, wx_sum, w_sum, wl, wll, wlx)
        better = error < best
        best = where(better, error, best)
        best_code = where(better, trial, best_code)
        best_low = where(better, m, best_low)
        best_wl = where(better, wl, best_wl)
        best_wll = where(better, wll, best_wll)
        best_wlx = where(better, wlx, best_wlx)
    return best_code, best_low, best_wl, best_wll, best_wlx


class _Groups(NamedTuple):
    """The groups of a tile: each field is a flat float32 array with a vector (16 super-blocks) for every group."""

    scale: Floats
    low: Floats
    """The minimum, negated."""
    w: Floats
    """Σw."""
    wx: Floats
    """Σw·x."""
    code: Floats
    """The scale as a multiple of d."""
    low_code: Floats
    """The minimum as a multiple of dmin."""


@part
def _fit_groups(x, w, size, top, codes, effort, groups):
    """Step 1 and 2: every group's scale and minimum, d and dmin for the largest of them."""
    top_scale = splat(0.0)
    top_low = splat(0.0)
    for g in range(_BLOCK // size):
        s, m, w_sum, wx_sum = _fit_group(x, w, g * size, size, top, effort)
        store(groups.scale, g, s)
        store(groups.low, g, m)
        store(groups.w, g, w_sum)
        store(groups.wx, g, wx_sum)
        top_scale = maximum(top_scale, s)
        top_low = maximum(top_low, m)
    return from_half(to_half(top_scale / codes)), from_half(to_half(top_low / codes))


@part
def _round_scales(x, w, size, top, codes, reach, d, dmin, groups):
    """Step 3, once: whole multiples of d and dmin for every group, then the best d and dmin for them."""
    aa = splat(0.0)
    ab = splat(0.0)
    bb = splat(0.0)
    ax = splat(0.0)
    bx = splat(0.0)
    for g in range(_BLOCK // size):
        s, m, wl, wll, wlx = _refine_group(
            x, w, g * size, size, top, codes, d, dmin, load(groups.scale, g), load(groups.low, g), reach,
            load(groups.w, g), load(groups.wx, g),
        )  # fmt: skip
        store(groups.code, g, s)
        store(groups.low_code, g, m)
        aa = fma(s * s, wll, aa)
        ab = fma(s * m, wl, ab)
        bb = fma(m * m, load(groups.w, g), bb)
        ax = fma(s, wlx, ax)
        bx = fma(m, load(groups.wx, g), bx)
    det = aa * bb - ab * ab
    both = (det > 0) & (bb > 0)
    new_d = where(both, (ax * bb - ab * bx) / det, ax / aa)
    new_dmin = where(both, (ab * ax - aa * bx) / det, dmin)
    fine = (new_d > 0) & (new_dmin >= 0)
    d = where(fine, from_half(to_half(new_d)), d)
    dmin = where(fine, from_half(to_half(new_dmin)), dmin)
    for g in range(_BLOCK // size):
        store(groups.scale, g, d * load(groups.code, g))
        store(groups.low, g, dmin * load(groups.low_code, g))
    return d, dmin


@part
def _choose_levels(x, w, size, top, groups, tile):
    """Step 4: the levels, Σw·x² and Σw·x·x̂."""
    wxx = splat(0.0)
    wxh = splat(0.0)
    for g in range(_BLOCK // size):
        s = load(groups.scale, g)
        wxl = splat(0.0)
        inverse = divide(splat(1.0), s)
        offset = load(groups.low, g) * inverse
        for i in range(g * size, (g + 1) * size):
            v = load(x, i)
            level = minimum(maximum(rint(fma(v, inverse, offset)), 0), top)
            store(tile, i, integers(level))
            wx = load(w, i) * v
            wxx = fma(wx, v, wxx)
            wxl = fma(wx, level, wxl)
        wxh = fma(s, wxl, wxh) - load(groups.low, g) * load(groups.wx, g)
    return wxx, wxh


@kernel(
    "void(float32[::1], float32[::1], int64, float32, float32, float32, float32, int64, int64, int64, int64, float32,"
    "uint8[::1], uint16[::1], uint16[::1], uint8[::1], uint8[::1])"
)
def _search(
    source, weights, count, top, codes, start, step, steps, polish, rounds, reach, share,
    levels, d_out, dmin_out, scales, minima,
):  # fmt: skip
    """Fill the parts of len(d_out) super-blocks, a multiple of 16, each of `count` groups."""
    size = _BLOCK // count
    effort = Effort(start, step, steps, polish, rounds, reach, share)
    x, w = tiles(_BLOCK)
    tile = np.empty(_BLOCK * LANES, np.uint8)
    room = np.empty((6, count * LANES), np.float32)
    groups = _Groups(room[0], room[1], room[2], room[3], room[4], room[5])
    code_tile = np.empty(count * LANES, np.uint8)
    low_tile = np.empty(count * LANES, np.uint8)
    for t in range(len(d_out) // LANES):
        read_tiles(source, weights, t, _BLOCK, x, w)
        d, dmin = _fit_groups(x, w, size, top, codes, effort, groups)
        for _ in range(rounds):
            d, dmin = _round_scales(x, w, size, top, codes, reach, d, dmin, groups)
        wxx, wxh = _choose_levels(x, w, size, top, groups, tile)
        store(d_out, t, to_half(stretch(d, share, wxx, wxh)))
        store(dmin_out, t, to_half(stretch(dmin, share, wxx, wxh)))
        for g in range(count):
            store(code_tile, g, integers(load(groups.code, g)))
            store(low_tile, g, integers(load(groups.low_code, g)))
        write_tile(tile, t, _BLOCK, levels)
        write_tile(code_tile, t, count, scales)
        write_tile(low_tile, t, count, minima)


def _searcher(
    groups: int, top: int, codes: int, plain: Effort, weighted: Effort
) -> Callable[[Floats, Floats | None], Parts]:
    def search(x: Floats, weights: Floats | None) -> Parts:
        n = len(x)
        d, dmin = np.empty((2, n), np.uint16)
        levels, scales, minima = np.empty((n, _BLOCK), np.uint8), *np.empty((2, n, groups), np.uint8)
        effort = plain if weights is None else weighted
        flat = levels.ravel(), d, dmin, scales.ravel(), minima.ravel()
        _search(x.ravel(), flat_weights(weights), groups, top, codes, *effort, *flat)
        return Parts(levels, d.view(np.float16), dmin.view(np.float16), scales, minima)

    return search


_Q2 = Effort(-0.6, 0.15, 12, 2, 2, 1, 1.0), Effort(-1.0, 0.1, 24, 2, 3, 2, 0.5)
_Q4 = Effort(-2.0, 0.25, 16, 2, 2, 1, 0.5), Effort(-3.0, 0.2, 24, 2, 2, 2, 0.5)
_Q5 = Effort(-3.0, 0.3, 20, 2, 2, 1, 1.0), Effort(-4.0, 0.4, 20, 2, 2, 2, 1.0)
for _type, _search_type, _pack, _unpack in (
    (QuantType.Q2_K, _searcher(16, 3, 15, *_Q2), pack_q2, unpack_q2),
    (QuantType.Q4_K, _searcher(8, 15, 63, *_Q4), pack_q4, unpack_q4),
    (QuantType.Q5_K, _searcher(8, 31, 63, *_Q5), pack_q5, unpack_q5),
):
    # The largest d, a float16, times the highest code and level.
    _limit = 65504.0 * (15 * 3 if _type is QuantType.Q2_K else 63 * 15)
    register(_type, Format(_search_type, _pack, _unpack, restore_affine, _limit), _search, *layout_k.AFFINE)
