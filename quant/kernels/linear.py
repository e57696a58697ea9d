"""Blocks with one scale and evenly spaced levels, x ≈ d·level: Q4_0, Q5_0, Q2_0, TQ1_0, TQ2_0.

Layouts: `layouts/whole.py` (Q4_0, Q5_0) and `layouts/ternary.py`.

The search runs 16 blocks at a time, one in each lane. It tries a row of candidate scales. A candidate gives levels by
rounding, and these levels give the best scale (weighted least squares). The best candidate is improved by a few more
rounds of the same two steps. At the end, levels are rounded for the scale in float16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from quant.kernels.formats import Floats, Format, Parts, register
from quant.kernels.layouts import ternary as layout_ternary
from quant.kernels.layouts import whole as layout_whole
from quant.kernels.search.fitting import ROUNDER, flat_weights, quotient, stretch
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


@part
def _sums(x, w, size, inverse, low, high):
    """Σw·l², Σw·l·x for levels l = round(x·inverse), cut to low … high."""
    wll_sum = splat(0.0)
    wlx_sum = splat(0.0)
    for i in range(size):
        v = load(x, i)
        # Rounded by the addition: see ROUNDER.
        level = minimum(maximum(fma(v, inverse, ROUNDER), ROUNDER + low), ROUNDER + high) - ROUNDER
        wl = load(w, i) * level
        wll_sum = fma(wl, level, wll_sum)
        wlx_sum = fma(wl, v, wlx_sum)
    return wll_sum, wlx_sum


@kernel(
    "void(float32[::1], float32[::1], int64, float32, float32, float32, float32, int64, int64, float32,"
    "uint8[::1], uint16[::1])"
)
def _search(source, weights, size, low, high, start, step, steps, polish, share, levels, d_out):
    """Fill the parts of len(d_out) blocks, a multiple of 16. Stored levels begin at 0, for `low`.

    The candidates bring the element of largest magnitude to start, start + step, ….
    """
    x, w = tiles(size)
    tile = np.empty(size * LANES, np.uint8)
    for t in range(len(d_out) // LANES):
        read_tiles(source, weights, t, size, x, w)
        peak = load(x, 0)
        for i in range(1, size):
            v = load(x, i)
            peak = where(absolute(v) > absolute(peak), v, peak)
        per_peak = quotient(splat(1.0), peak)
        best_wll = splat(1.0)
        best_wlx = splat(0.0)
        for n in range(steps + polish):
            inverse = per_peak * (start + step * np.float32(n)) if n < steps else quotient(best_wll, best_wlx)
            wll, wlx = _sums(x, w, size, inverse, low, high)
            # The best scale for these levels reduces the error by wlx² / wll.
            better = wlx * wlx * best_wll > best_wlx * best_wlx * wll
            best_wll = where(better, wll, best_wll)
            best_wlx = where(better, wlx, best_wlx)
        d = from_half(to_half(best_wlx / best_wll))
        inverse = quotient(splat(1.0), d)
        wxx = splat(0.0)
        wxl = splat(0.0)
        for i in range(size):
            v = load(x, i)
            level = minimum(maximum(rint(v * inverse), low), high)
            wx = load(w, i) * v
            wxx = fma(wx, v, wxx)
            wxl = fma(wx, level, wxl)
            store(tile, i, integers(level - low))
        store(d_out, t, to_half(stretch(d, share, wxx, d * wxl)))
        write_tile(tile, t, size, levels)


class _Effort(NamedTuple):
    """`steps` candidates from `start` on, `step` apart; `polish` further rounds; the `share` of `fitting.stretch`."""

    start: float
    step: float
    steps: int
    polish: int
    share: float


def _searcher(low: int, high: int, plain: _Effort, weighted: _Effort) -> Callable[[Floats, Floats | None], Parts]:
    def search(x: Floats, weights: Floats | None) -> Parts:
        levels, d = np.empty(x.shape, np.uint8), np.empty(len(x), np.uint16)
        _search(
            x.ravel(),
            flat_weights(weights),
            x.shape[1],
            low,
            high,
            *(plain if weights is None else weighted),
            levels.ravel(),
            d,
        )
        return Parts(levels, d.view(np.float16))

    return search


_Q4 = _Effort(-7.0, -0.25, 9, 1, 1.0), _Effort(-7.0, -0.25, 9, 1, 1.0)
_Q5 = _Effort(-14.0, -0.3, 9, 1, 1.0), _Effort(-14.0, -0.3, 9, 1, 1.0)
_Q2 = _Effort(1.3, 0.2, 9, 1, 1.0), _Effort(1.3, 0.2, 9, 1, 1.0)
_TQ = _Effort(0.8, 0.3, 9, 1, 1.0), _Effort(0.8, 0.3, 9, 1, 1.0)
for _type, _searches, _layout, _largest, _packers in (
    (QuantType.Q4_0, _searcher(-8, 7, *_Q4), layout_whole.Q4_0, 8, layout_whole.KERNELS),
    (QuantType.Q5_0, _searcher(-16, 15, *_Q5), layout_whole.Q5_0, 16, layout_whole.KERNELS),
    (QuantType.Q2_0, _searcher(-1, 2, *_Q2), layout_ternary.Q2_0, 2, layout_ternary.CRUMBS),
    (QuantType.TQ1_0, _searcher(-1, 1, *_TQ), layout_ternary.TQ1_0, 1, layout_ternary.TRITS),
    (QuantType.TQ2_0, _searcher(-1, 1, *_TQ), layout_ternary.TQ2_0, 1, layout_ternary.CRUMBS),
):
    register(_type, Format(_searches, *_layout, 65504.0 * _largest), _search, *_packers)
