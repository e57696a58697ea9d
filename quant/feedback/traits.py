"""Block types as error feedback sees them: a value is d·code·t + e·low, t from a table of values that levels stand for.

`code` and `low` are small integers of a group, d and e floats of a block. A type without group scales has 1 for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.kernels.formats import Floats, Parts
from quant.kernels.layouts.whole import IQ4_VALUES
from quant.types import QuantType

_EVEN: NDArray[np.float32] = np.empty(0, np.float32)


@dataclass(frozen=True)
class Traits:
    """The properties of a type."""

    group: int
    """Elements that share a code."""
    block: int
    """Elements that share d."""
    lowest: int
    """The table value of level 0, where values are evenly spaced."""
    levels: int
    codes: tuple[int, int] = (1, 1)
    """The least and the largest code; (1, 1) where there are none."""
    stored: int = 0
    """What a stored code has added to it."""
    low: tuple[int, int] = (0, 0)
    """The same for `low`; (1, 1) where e is a number of its own, (0, 0) where there is none."""
    uneven: bool = False
    """Whether levels stand for the values of IQ4."""

    @property
    def values(self) -> NDArray[np.float32]:
        """The values of the levels, float32, ascending."""
        even = np.arange(self.lowest, self.lowest + self.levels)
        return (IQ4_VALUES if self.uneven else even).astype(np.float32)

    @property
    def near(self) -> NDArray[np.float32]:
        """For kernels: the nearest value by place in steps of a half from −256; empty where values are even."""
        if not self.uneven:
            return _EVEN
        places = np.arange(-256, 257) / 2
        near: NDArray[np.float32] = self.values[np.abs(places[:, None] - self.values).argmin(axis=1)]
        return near

    def scales(self, parts: Parts) -> tuple[Floats, Floats, Floats, Floats]:
        """codes and lows float32[blocks, groups], d and e float32[blocks]."""
        blocks, groups = len(parts.d), self.block // self.group
        ones = np.ones((blocks, groups), np.float32)
        codes = ones if self.codes == (1, 1) else _signed(parts.scales, self.stored)
        if self.low == (0, 0):
            return codes, ones * 0, parts.d.astype(np.float32), np.zeros(blocks, np.float32)
        lows = ones if self.low == (1, 1) else -parts.minima.astype(np.float32)
        return codes, lows, parts.d.astype(np.float32), parts.dmin.astype(np.float32)

    def parts(self, values: Floats, codes: Floats, lows: Floats, d: Floats, e: Floats) -> Parts:
        """The inverse of `scales`, for table values float32[blocks, block]."""
        levels = np.searchsorted(self.values, values).astype(np.uint8)
        half = d.astype(np.float16)
        scales = np.empty((len(d), 0), np.uint8)
        if self.codes != (1, 1):
            scales = (codes.astype(np.int32) + self.stored).astype(np.uint8)
        if self.low == (0, 0):
            return Parts(levels, half, scales=scales)
        minima = np.empty((len(d), 0), np.uint8) if self.low == (1, 1) else (-lows).astype(np.uint8)
        return Parts(levels, half, e.astype(np.float16), scales, minima)


def _signed(scales: NDArray[Any], stored: int) -> Floats:
    """Stored codes as numbers; where nothing is added, Q6_K has signed bytes and the others are small."""
    return scales.view(np.int8).astype(np.float32) - np.float32(stored)


TRAITS = {
    QuantType.Q4_0: Traits(32, 32, -8, 16),
    QuantType.Q5_0: Traits(32, 32, -16, 32),
    QuantType.Q4_1: Traits(32, 32, 0, 16, low=(1, 1)),
    QuantType.Q5_1: Traits(32, 32, 0, 32, low=(1, 1)),
    QuantType.Q2_K: Traits(16, 256, 0, 4, (0, 15), low=(-15, 0)),
    QuantType.Q3_K: Traits(16, 256, -4, 8, (-32, 31), 32),
    QuantType.Q4_K: Traits(32, 256, 0, 16, (0, 63), low=(-63, 0)),
    QuantType.Q5_K: Traits(32, 256, 0, 32, (0, 63), low=(-63, 0)),
    QuantType.Q6_K: Traits(16, 256, -32, 64, (-128, 127)),
    QuantType.IQ4_NL: Traits(32, 32, 0, 16, uneven=True),
    QuantType.IQ4_XS: Traits(32, 256, 0, 16, (-32, 31), 32, uneven=True),
}
