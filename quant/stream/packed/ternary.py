"""Ternary weights as transformers stores BitNet b1.58: two bits for each of −1, 0 and 1, one scale for a matrix.

A byte holds the weights of four rows that lie a quarter of the matrix apart, the first in its lowest bits. Source:
`integrations/bitnet.py` of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quant.errors import BadValues
from quant.plan import Transform
from quant.stream.packed.codes import WEIGHTS, check_numbers
from quant.stream.packed.floats import NUMPY, widened
from quant.types import QuantType


@dataclass(frozen=True, slots=True)
class PackedTernary:
    """Bytes uint8[rows / 4, columns], and a scale [1], which divides the weights where it is `inverse`."""

    rows: int
    columns: int
    scale: str
    inverse: bool
    exact: QuantType | None

    @property
    def name(self) -> str:
        """`ternary codes of BitNet`."""
        return "ternary codes of BitNet"

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Codes, scale."""
        return "u1", NUMPY[self.scale]

    def values(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """float32[rows, columns]; BadValues where a code or the scale is no number."""
        levels, factor = self._read(arrays)
        found: np.ndarray = (levels.view(np.int8) - np.int8(1)) * factor
        return found

    def blocks(self, arrays: Sequence[np.ndarray], transform: Transform | None) -> np.ndarray:
        """Blocks of `exact`, uint8[rows, bytes]; BadValues as `values`, and where float16 cannot hold the scale."""
        from quant.kernels import blocks as kernels
        from quant.kernels.formats import Parts

        assert self.exact is not None
        levels, factor = self._read(arrays)
        with np.errstate(over="ignore"):
            d = np.full(levels.size // self.exact.block, factor, np.float16)
        check_numbers(d)
        packed = kernels.pack(self.exact, Parts(levels.reshape(-1, self.exact.block), d)).reshape(self.rows, -1)
        return transform.apply(packed) if transform else packed

    def _read(self, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, np.float32]:
        """Codes uint8[rows, columns], 0 to 2, and what they are multiplied by."""
        codes = arrays[0].reshape(-1, self.columns)
        levels = np.concatenate([codes >> shift & 3 for shift in (0, 2, 4, 6)])
        with np.errstate(divide="ignore"):
            factor = widened(arrays[1])[0]
            factor = np.float32(1) / factor if self.inverse else factor
        check_numbers(np.array(factor))
        if levels.max() > 2:
            raise BadValues("a ternary code is 3", WEIGHTS)
        return levels, factor
