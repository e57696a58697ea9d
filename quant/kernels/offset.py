"""Blocks of 32 with one scale and one minimum, x ≈ d·level + m: Q4_1 and Q5_1; d and m are float16 of any sign.

The search runs 16 blocks at a time, one in each lane. It tries a row of candidate scales. A candidate gives levels by
rounding, and these levels give the best scale and minimum (weighted least squares). The best candidate is improved by a
few more rounds of the same two steps. At the end, levels are rounded for d and m in float16. Layouts:
`layouts/whole.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from quant.kernels.formats import Floats, Format, Parts, register
from quant.kernels.layouts import whole as layout_whole
from quant.kernels.search.fitting import affine_error, affine_sums, divide, flat_weights
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

_BLOCK = 32


@part
def _fit(x, w, w_sum, wx_sum, inverse, offset, top):
    """The best scale and negated minimum for the levels round(x·inverse + offset), the error, and whether they vary."""
    wl, wll, wlx = affine_sums(x, w, 0, _BLOCK, inverse, offset, top)
    det = fma(w_sum, wll, -(wl * wl))
    scale = (w_sum * wlx - wx_sum * wl) / det
    low = (wl * wlx - wll * wx_sum) / det
    return scale, low, affine_error(scale, low, wx_sum, w_sum, wl, wll, wlx), det > 0


@kernel(
    "void(float32[::1], float32[::1], float32, float32, float32, int64, int64, uint8[::1], uint16[::1], uint16[::1])"
)
def _search(source, weights, top, start, step, steps, rounds, levels, d_out, m_out):
    """Fill the parts of len(d_out) blocks, a multiple of 16."""
    x, w = tiles(_BLOCK)
    tile = np.empty(_BLOCK * LANES, np.uint8)
    for t in range(len(d_out) // LANES):
        read_tiles(source, weights, t, _BLOCK, x, w)
        bottom = load(x, 0)
        peak = bottom
        w_sum = splat(0.0)
        wx_sum = splat(0.0)
        for i in range(_BLOCK):
            v = load(x, i)
            weight = load(w, i)
            bottom = minimum(bottom, v)
            peak = maximum(peak, v)
            w_sum = w_sum + weight
            wx_sum = fma(weight, v, wx_sum)
        span = peak - bottom
        best_scale = span / top
        best_low = -bottom
        best = splat(HUGE)
        for n in range(steps + rounds):
            if n < steps:
                inverse = divide(splat(top + start + step * np.float32(n)), span)
                offset = -bottom * inverse
            else:
                inverse = divide(splat(1.0), best_scale)
                offset = best_low * inverse
            scale, low, error, varied = _fit(x, w, w_sum, wx_sum, inverse, offset, top)
            better = (error < best) & varied & (scale > 0)
            best = where(better, error, best)
            best_scale = where(better, scale, best_scale)
            best_low = where(better, low, best_low)
        half = to_half(best_scale)
        d = from_half(half)
        half_low = to_half(-best_low)
        inverse = divide(splat(1.0), d)
        offset = -from_half(half_low) * inverse
        store(d_out, t, half)
        store(m_out, t, half_low)
        for i in range(_BLOCK):
            store(tile, i, integers(minimum(maximum(rint(fma(load(x, i), inverse, offset)), 0), top)))
        write_tile(tile, t, _BLOCK, levels)


def _searcher(top: int, start: float, step: float, steps: int) -> Callable[[Floats, Floats | None], Parts]:
    def search(x: Floats, weights: Floats | None) -> Parts:
        levels, (d, m) = np.empty(x.shape, np.uint8), np.empty((2, len(x)), np.uint16)
        _search(x.ravel(), flat_weights(weights), top, start, step, steps, 2, levels.ravel(), d, m)
        return Parts(levels, d.view(np.float16), m.view(np.float16))

    return search


_KERNELS = (_search, *layout_whole.KERNELS)
# A block's span, and its minimum, must fit float16 by themselves.
register(
    QuantType.Q4_1, Format(_searcher(15, -2.0, 0.25, 16), *layout_whole.Q4_1, 65504.0), _search, *layout_whole.KERNELS
)
register(
    QuantType.Q5_1, Format(_searcher(31, -4.0, 0.4, 20), *layout_whole.Q5_1, 65504.0), _search, *layout_whole.KERNELS
)
