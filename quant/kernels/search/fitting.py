"""Weighted least squares: the best scale (and minimum) of a group of elements for given levels; for several families.

In all searches x is an element, w its weight, l its level, q or v the value of its level, x̂ the restored element. A
name such as `wlx` or `wlx_sum` is Σw·l·x over the elements of a group or block.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quant.kernels.formats import Floats
from quant.kernels.vectors.compiler import part
from quant.kernels.vectors.simd import fma, load, maximum, minimum, rint, splat, where

# The float32 numbers between 2²³ and 2²⁴ are whole. So (x + ROUNDER) − ROUNDER is x, |x| < 2²², rounded to the nearest
# whole number. The addition can be a part of an `fma`.
ROUNDER = np.float32(1.5 * 2**23)


class Effort(NamedTuple):
    """How much a search tries; a family has one for plain and one for weighted elements."""

    start: float
    """Candidate number n for a group's scale brings its largest element to the level top + start + n·step."""
    step: float
    steps: int
    """Number of candidates."""
    polish: int
    """Rounds in which the levels of the best candidate, and then its scale, are fitted again."""
    rounds: int
    """Rounds in which the scales of all groups are chosen for d, and then d for them."""
    reach: int
    """Number of whole multiples of d that are tried on either side of a group's scale."""
    share: float
    """The `share` of `stretch`."""


def flat_weights(weights: Floats | None) -> Floats:
    """Weights as kernels take them: flat float32, empty when all are 1."""
    return np.empty(0, np.float32) if weights is None else weights.ravel()


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
    """a / b, or 0 where b is 0 or negative; `quotient` takes a negative b."""
    return where(b > 0, a / b, 0)


@part
def affine_error(scale, low, wx, w, wl, wll, wlx):
    """Σw·(x − scale·l + low)², less the constant Σw·x²."""
    by_scale = fma(scale, wll, wlx * -2)
    by_low = fma(low, w, wx * 2)
    return fma(scale, by_scale, low * by_low) - scale * low * wl * 2


@part
def quotient(a, b):
    """a / b, or 0 where b is 0; `divide` gives 0 for a negative b, too."""
    return where(b != 0, a / b, 0)


@part
def affine_fit(wl, wll, wlx, w, wx):
    """The best scale and low, x ≈ scale·l − low with low ≥ 0, for given levels; and whether the levels differ at all.

    Where the unrestricted fit has a negative low, low is 0 and the scale alone is fitted.
    """
    det = fma(w, wll, -(wl * wl))
    low = fma(wl, wlx, -(wll * wx))
    under = low < 0
    inverse = splat(1.0) / where(under, wll, det)
    scale = where(under, wlx, fma(w, wlx, -(wx * wl))) * inverse
    return scale, where(under, 0, low * inverse), det > 0


@part
def stretch(d, share, wxx, wxh):
    """d, enlarged so that a `share` of the difference between Σw·x² (`wxx`) and Σw·x·x̂ (`wxh`) disappears.

    Least squares shrinks the restored values x̂, the more so the coarser the levels are. In a product with inputs that
    agree, the shrinkage adds up, where other errors cancel out. With a larger d, the squares of errors grow a little,
    and the output of the model changes less. KL divergence with share 1 divided by KL divergence with share 0, measured
    on the model `tale`: IQ1_S 0.67, IQ2_XXS 0.83, Q2_K 0.89, Q3_K 0.97.
    """
    lack = minimum(maximum(divide(wxx, wxh) - 1, 0), np.float32(0.3))
    return fma(d * share, lack, d)
