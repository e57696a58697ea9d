"""Q1_0: blocks of 128 with one bit each, x ≈ ±d; d is float16.

Nothing to search for: the best d for given signs is the weighted mean of the magnitudes.
"""

from __future__ import annotations

import numpy as np

from quant.kernels.formats import Floats, Format, Parts, register
from quant.kernels.layout_ternary import Q1_0
from quant.types import QuantType


def _search(x: Floats, weights: Floats) -> Parts:
    d = (np.abs(x) * weights).sum(axis=1) / weights.sum(axis=1)
    return Parts((x >= 0).view(np.uint8), np.minimum(d, 65504).astype(np.float16))


register(QuantType.Q1_0, Format(_search, *Q1_0, 65504.0))
