"""Weighted least squares of a group of elements against its levels: what searches of several families share."""

from __future__ import annotations

from quant.kernels.compiler import part
from quant.kernels.simd import fma, load, maximum, minimum, rint, splat, where


@part
def affine_sums(x, w, first, size, inverse, offset, top):
    """Σw·l, Σw·l², Σw·l·x of a group with levels l = round(x·inverse + offset), cut to 0 … top."""
    wl_sum = splat(0.0)
    wll_sum = splat(0.0)
    wlx_sum = splat(0.0)
    for i in range(first, first + size):
        v = load(x, i)
        level = minimum(maximum(rint(fma(v, inverse, offset)), 0), top)
        wl = load(w, i) * level
        wl_sum = wl_sum + wl
        wll_sum = fma(wl, level, wll_sum)
        wlx_sum = fma(wl, v, wlx_sum)
    return wl_sum, wll_sum, wlx_sum


@part
def divide(a, b):
    """a / b, or 0 where b is not positive."""
    return where(b > 0, a / b, 0)


@part
def affine_error(scale, low, wx, w, wl, wll, wlx):
    """Σw·(x − scale·l + low)², less the constant Σw·x²."""
    by_scale = fma(scale, wll, wlx * -2)
    by_low = fma(low, w, wx * 2)
    return fma(scale, by_scale, low * by_low) - scale * low * wl * 2


@part
def quotient(a, b):
    """a / b, or 0 where b is 0."""
    return where(b != 0, a / b, 0)
