"""Errors of types: how far the products of a matrix with its inputs are from the source's, for each type it may have.

With Δ, the change by quantization, and G, the Gram matrix of the inputs, the error of a row is Δ·G·Δᵀ. With the squares
w of the inputs alone it is Σ Δ²·w; with nothing known of them, Σ Δ². Rows are independent: some of them speak for all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quant.feedback.factor import GramFactor
from quant.feedback.matrix import quantize
from quant.feedback.traits import TRAITS
from quant.kernels import blocks
from quant.kernels.formats import Floats
from quant.types import QuantType


@dataclass(frozen=True)
class InputStatistics:
    """Statistics of a matrix's inputs: the `factor` where errors are fed back, `squares` float32 `(columns,)`."""

    factor: GramFactor | None = None
    squares: NDArray[np.float32] | None = None

    def quantized(self, rows: Floats, type: QuantType, threads: int = 1) -> Floats:
        """Rows float32[r, n] as the pass quantizes them, in numbers again. Raises BadValues."""
        if self.factor is not None and type in TRAITS:
            made = quantize(rows, type, self.factor, threads)
        else:
            made = blocks.quantize(rows, type, self.squares, threads)
        return blocks.dequantize(made, type, rows.shape[1])

    def plainly(self, rows: Floats, type: QuantType, threads: int = 1) -> Floats:
        """The same without feedback, which is quick."""
        return blocks.dequantize(blocks.quantize(rows, type, self.squares, threads), type, rows.shape[1])

    def error(self, change: Floats) -> float:
        """The error of a change float32[r, n] of the rows."""
        if self.factor is not None:
            moved = change[:, self.factor.order]
            return self.factor.scale * float(np.einsum("ij,ij->", moved @ self.factor.curvature, moved, dtype=float))
        squares = np.square(change, dtype=np.float64)
        return float(squares.sum() if self.squares is None else (squares @ self.squares).sum())


def errors_of(
    rows: Floats, types: Iterable[QuantType], inputs: InputStatistics, threads: int = 1
) -> dict[QuantType, float]:
    """The errors of some rows float32[r, n], by type. Raises BadValues for NaN or infinity in the rows."""
    return {type: inputs.error(inputs.quantized(rows, type, threads) - rows) for type in types}
