"""Layouts that store a matrix row by row: compressed-tensors, and MLX.

Sources: `compressors/` of compressed-tensors, and `mlx.core.quantize` of MLX.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quant.stream.packed.bits import unpack_dense, unpack_words
from quant.stream.packed.codes import CodePacking, Scales
from quant.stream.packed.floats import NUMPY, widened
from quant.types import QuantType


@dataclass(frozen=True, slots=True)
class PackedRows(CodePacking):
    """compressed-tensors: words int32[rows, …] or int8[rows, columns] (`whole`), scales [rows, groups] or [1].

    A code is stored plus half of its range, so that it is never negative; whole bytes are stored as they are. With
    `zeroed` zeros follow, packed along the rows: int32[rows * bits / 32, groups], or int8[rows, groups]. With `dense`
    codes straddle words, as they do since May 2026.
    """

    rows: int
    columns: int
    groups: int
    bits: int
    scale: str
    whole: bool
    zeroed: bool
    dense: bool
    exact: QuantType | None

    @property
    def name(self) -> str:
        """`4-bit codes of compressed-tensors`."""
        return f"{self.bits}-bit codes of compressed-tensors"

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Codes, scales, zeros."""
        word = "i1" if self.whole else "<i4"
        return word, NUMPY[self.scale], *((word,) if self.zeroed else ())

    def scales(self, arrays: Sequence[np.ndarray]) -> Scales:
        """A scale and a zero for each group."""
        factors = widened(arrays[1]).reshape(-1, self.groups)
        factors = np.ascontiguousarray(np.broadcast_to(factors, (self.rows, self.groups)))
        zeros = np.full(factors.shape, 1 << (self.bits - 1), np.int16)
        if self.zeroed and self.whole:
            zeros += arrays[2].reshape(factors.shape)
        elif self.zeroed:
            along = arrays[2].reshape(-1, self.groups).T
            zeros = np.ascontiguousarray(self._unpack(along, self.rows).T).astype(np.int16)
        return Scales(factors, zeros)

    def levels(self, arrays: Sequence[np.ndarray], first: int, last: int) -> np.ndarray:
        """As `CodePacking`."""
        rows = arrays[0].reshape(self.rows, -1)[first:last]
        return (rows ^ np.int8(-128)).view(np.uint8) if self.whole else self._unpack(rows, self.columns)

    def _unpack(self, words: np.ndarray, count: int) -> np.ndarray:
        return (unpack_dense if self.dense else unpack_words)(words, self.bits, count)


@dataclass(frozen=True, slots=True)
class PackedAffine(CodePacking):
    """MLX: words uint32[rows, columns * bits / 32], scales and biases [rows, groups] of the type `scale`."""

    rows: int
    columns: int
    groups: int
    bits: int
    scale: str
    exact: QuantType | None

    @property
    def name(self) -> str:
        """`4-bit codes of MLX`."""
        return f"{self.bits}-bit codes of MLX"

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Words, scales, biases."""
        return "<i4", NUMPY[self.scale], NUMPY[self.scale]

    def scales(self, arrays: Sequence[np.ndarray]) -> Scales:
        """A scale and a bias for each group."""
        factors, bias = (widened(each).reshape(self.rows, self.groups) for each in arrays[1:])
        return Scales(factors, bias=bias)

    def levels(self, arrays: Sequence[np.ndarray], first: int, last: int) -> np.ndarray:
        """As `CodePacking`."""
        return unpack_dense(arrays[0].reshape(self.rows, -1)[first:last], self.bits, self.columns)
