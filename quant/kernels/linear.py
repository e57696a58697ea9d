"""Blocks with one scale and evenly spaced levels, x ≈ d·level: Q4_0, Q5_0, Q2_0, TQ1_0, TQ2_0.

The search runs 16 blocks at a time, one in each lane: a row of candidate scales, for each the levels by rounding and then
the best scale for these levels (weighted least squares, one division); from the best of them a few more rounds of the
same two steps; levels once more for the scale as float16 rounds it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from quant.kernels import layout_ternary, layout_whole
from quant.kernels.compiler import kernel, part
from quant.kernels.formats import Floats, Format, Parts, register
from quant.kernels.half import from_half, to_half
from quant.kernels.simd import (
    LANES,
    absolute,
    fma,
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


@part
def _scale(x, w, size, inverse, low, high):
    """The best scale for the levels round(x·inverse), cut to low … high; and how much error it takes away."""
    wll_sum = splat(0.0)
    wlx_sum = splat(0.0)
    for i in range(size):
        v = load(x, i)
        level = minimum(maximum(rint(v * inverse), low), high)
        wl = load(w, i) * level
        wll_sum = fma(wl, level, wll_sum)
        wlx_sum = fma(wl, v, wlx_sum)
    scale = where(wll_sum > 0, wlx_sum / wll_sum, 0)
    return scale, scale * wlx_sum


@kernel(
    "void(float32[::1], float32[::1], int64, float32, float32, float32, float32, int64, int64, uint8[::1], uint16[::1])"
)
def _search(source, weights, size, low, high, start, step, steps, rounds, levels, d_out):
    """Fill the parts of len(d_out) blocks, a multiple of 16. Stored levels begin at 0, for `low`.

    The candidates are those that bring the element of largest magnitude to start, start + step, ….
    """
    x = np.empty(size * LANES, np.float32)
    w = np.empty(size * LANES, np.float32)
    tile = np.empty(size * LANES, np.uint8)
    for t in range(len(d_out) // LANES):
        base = t * LANES * size
        for i in range(0, size, LANES):
            transpose(source, base + i, size, x, i * LANES, LANES)
            transpose(weights, base + i, size, w, i * LANES, LANES)
        peak = load(x, 0)
        for i in range(1, size):
            v = load(x, i)
            peak = where(absolute(v) > absolute(peak), v, peak)
        per_peak = where(peak != 0, splat(1.0) / peak, 0)
        best = splat(-1.0)
        best_scale = splat(0.0)
        for n in range(steps):
            scale, gain = _scale(x, w, size, per_peak * (start + step * np.float32(n)), low, high)
            better = gain > best
            best = where(better, gain, best)
            best_scale = where(better, scale, best_scale)
        for _ in range(rounds):
            inverse = where(best_scale != 0, splat(1.0) / best_scale, 0)
            scale, gain = _scale(x, w, size, inverse, low, high)
            better = gain > best
            best = where(better, gain, best)
            best_scale = where(better, scale, best_scale)
        half = to_half(best_scale)
        d = from_half(half)
        inverse = where(d != 0, splat(1.0) / d, 0)
        store(d_out, t, half)
        for i in range(size):
            store(tile, i, integers(minimum(maximum(rint(load(x, i) * inverse), low), high) - low))
        for i in range(0, size, LANES):
            transpose(tile, i * LANES, LANES, levels, base + i, size)


def _searcher(low: int, high: int, start: float, step: float, steps: int) -> Callable[[Floats, Floats], Parts]:
    def search(x: Floats, weights: Floats) -> Parts:
        levels, d = np.empty(x.shape, np.uint8), np.empty(len(x), np.uint16)
        _search(x.ravel(), weights.ravel(), x.shape[1], low, high, start, step, steps, 1, levels.ravel(), d)
        return Parts(levels, d.view(np.float16))

    return search


for _type, _searches, _layout, _largest in (
    (QuantType.Q4_0, _searcher(-8, 7, -7.0, -0.25, 9), layout_whole.Q4_0, 8),
    (QuantType.Q5_0, _searcher(-16, 15, -14.9, -0.2, 9), layout_whole.Q5_0, 16),
    (QuantType.Q2_0, _searcher(-1, 2, 1.3, 0.2, 9), layout_ternary.Q2_0, 2),
    (QuantType.TQ1_0, _searcher(-1, 1, 0.8, 0.3, 9), layout_ternary.TQ1_0, 1),
    (QuantType.TQ2_0, _searcher(-1, 1, 0.8, 0.3, 9), layout_ternary.TQ2_0, 1),
):
    register(_type, Format(_searches, *_layout, 65504.0 * _largest))
