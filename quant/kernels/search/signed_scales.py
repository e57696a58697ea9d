"""Rounding scales to signed multiples of d, x ≈ d·code·value, shared by the searches of Q3_K, Q6_K and IQ4_XS.

A family brings two functions, and their further argument `how`.

- `fit` (x, w, first, how, effort) → the best real scale of the group that begins at element `first`.
- `sums` (x, w, first, scale, how) → Σw·q², Σw·q·x of the group, with its nearest values q at this scale.
"""

from __future__ import annotations

from quant.kernels.search.fitting import quotient
from quant.kernels.vectors.compiler import part
from quant.kernels.vectors.half import from_half, to_half
from quant.kernels.vectors.simd import HUGE, absolute, fma, load, maximum, minimum, rint, splat, store, where


@part
def fit_groups(x, w, size, groups, fit, how, effort, scale):
    """Write the best real scale of every group to `scale`; returns the scale of largest magnitude."""
    peak = splat(0.0)
    for g in range(groups):
        s = fit(x, w, g * size, how, effort)
        store(scale, g, s)
        peak = where(absolute(s) > absolute(peak), s, peak)
    return peak


@part
def _refine_group(x, w, first, sums, how, codes, d, scale, reach):
    """The best whole multiple of d near a group's scale; and its sums."""
    code = minimum(maximum(rint(quotient(scale, d)), -codes), codes - 1)
    best = splat(HUGE)
    best_code = code
    best_qq = splat(0.0)
    best_qx = splat(0.0)
    for n in range(-reach, reach + 1):
        trial = minimum(maximum(code + n, -codes), codes - 1)
        s = d * trial
        wqq, wqx = sums(x, w, first, s, how)
        error = s * fma(s, wqq, wqx * -2)
        better = error < best
        best = where(better, error, best)
        best_code = where(better, trial, best_code)
        best_qq = where(better, wqq, best_qq)
        best_qx = where(better, wqx, best_qx)
    return best_code, best_qq, best_qx


@part
def round_scales(x, w, size, groups, sums, how, codes, reach, d, scale, code):
    """A whole multiple of d, −codes … codes − 1, for every group, then the best d for them."""
    ax = splat(0.0)
    aa = splat(0.0)
    for g in range(groups):
        c, wqq, wqx = _refine_group(x, w, g * size, sums, how, codes, d, load(scale, g), reach)
        store(code, g, c)
        ax = fma(c, wqx, ax)
        aa = fma(c * c, wqq, aa)
    d = where(aa > 0, from_half(to_half(ax / aa)), d)
    for g in range(groups):
        store(scale, g, d * load(code, g))
    return d
