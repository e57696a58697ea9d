"""Q1_0: blocks of 128 with one bit each, x ≈ ±d; d is float16.

There is nothing to search for: the best d for given signs is the weighted mean of the magnitudes. Layout:
`layouts/ternary.py`.
"""

from __future__ import annotations

import numpy as np

from quant.kernels.formats import Floats, Format, Parts, register
from quant.kernels.layouts.ternary import Q1_0
from quant.types import QuantType


def _search(x: Floats, weights: Floats | None) -> Parts:
    size = np.abs(x)
    d = size.mean(axis=1) if weights is None else (size * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-30)
    return Parts((x >= 0).view(np.uint8), np.minimum(d, 65504).astype(np.float16))


register(QuantType.Q1_0, Format(_search, *Q1_0, 65504.0))
