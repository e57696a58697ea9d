"""Rounding scales to odd multiples of d, x ≈ d·odd·vector, shared by the searches of IQ1, IQ2 and IQ3.

A family brings `sums`, a function that finds its nearest vectors v at a scale: (x, w, first, size, scale, how, chosen)
→ Σw·v², Σw·v·x of elements first … first + size. It writes the vectors' indices to `chosen`; `how` has its arguments.
"""

from __future__ import annotations

import numpy as np

from quant.kernels.search.fitting import divide, stretch
from quant.kernels.vectors.compiler import part
from quant.kernels.vectors.half import from_half, to_half
from quant.kernels.vectors.simd import HUGE, LANES, floor, fma, load, maximum, minimum, splat, store, where

BLOCK = 256
SHARE = 0.85  # the `share` of `fitting.stretch` for IQ1, IQ2 and IQ3


@part
def round_scales(x, w, size, codes, unit, sums, how, d, scale, odds, trial, chosen):
    """The better of the two odd multiples of d next to every group's scale, then the best d for them, and Σw·x·x̂ / d.

    d is a float16 times `unit`; the multiples are 1, 3, … 2·codes + 1; `trial` has the shape of `chosen`.
    """
    ax = splat(0.0)
    aa = splat(0.0)
    groups = BLOCK // size
    vectors = len(chosen) // LANES // groups
    for g in range(groups):
        below = floor((divide(load(scale, g), d) - 1) * np.float32(0.5))
        best = splat(HUGE)
        best_odd = splat(1.0)
        best_vv = splat(0.0)
        best_vx = splat(0.0)
        for n in range(2):
            odd = minimum(maximum(below + n, 0), codes) * 2 + 1
            s = d * odd
            wvv, wvx = sums(x, w, g * size, size, s, how, trial)
            error = s * fma(s, wvv, wvx * -2)
            better = error < best
            best = where(better, error, best)
            best_odd = where(better, odd, best_odd)
            best_vv = where(better, wvv, best_vv)
            best_vx = where(better, wvx, best_vx)
            for i in range(g * vectors, (g + 1) * vectors):
                store(chosen, i, where(better, load(trial, i), load(chosen, i)))
        store(odds, g, best_odd)
        ax = fma(best_odd, best_vx, ax)
        aa = fma(best_odd * best_odd, best_vv, aa)
    d = where(ax > 0, from_half(to_half(ax / (aa * unit))) * unit, d)
    for g in range(groups):
        store(scale, g, d * load(odds, g))
    return d, ax


@part
def stored_scale(x, w, unit, d, ax, share):
    """The float16 bits that are stored for d, once d is enlarged (`fitting.stretch`)."""
    wxx = splat(0.0)
    for i in range(BLOCK):
        v = load(x, i)
        wxx = fma(load(w, i) * v, v, wxx)
    return to_half(stretch(d, share, wxx, d * ax) / unit)
