"""Layouts that store a matrix row by row: compressed-tensors, and MLX.

Sources: `compressors/` of compressed-tensors, and `mlx.core.quantize` of MLX.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quant.stream.packed.bits import unpack_dense, unpack_words
from quant.stream.packed.codes import CodePacking, Codes
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

    def codes(self, arrays: Sequence[np.ndarray]) -> Codes:
        """The codes, with a scale and a zero or a bias for each group."""
        scales = widened(arrays[1]).reshape(-1, self.groups)
        scales = np.ascontiguousarray(np.broadcast_to(scales, (self.rows, self.groups)))
        zeros = np.full(scales.shape, 1 << (self.bits - 1), np.int16)
        if self.whole:
            levels = (arrays[0].reshape(self.rows, self.columns) ^ np.int8(-128)).view(np.uint8)
            return Codes(levels, scales, zeros + arrays[2].reshape(scales.shape) if self.zeroed else zeros)
        unpack = unpack_dense if self.dense else unpack_words
        levels = unpack(arrays[0].reshape(self.rows, -1), self.bits, self.columns)
        if self.zeroed:
            along = arrays[2].reshape(-1, self.groups).T
            zeros = np.ascontiguousarray(unpack(along, self.bits, self.rows).T).astype(np.int16)
        return Codes(levels, scales, zeros)


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

    def codes(self, arrays: Sequence[np.ndarray]) -> Codes:
        """The codes, with a scale and a zero or a bias for each group."""
        scales, bias = (widened(each).reshape(self.rows, self.groups) for each in arrays[1:])
        return Codes(unpack_dense(arrays[0].reshape(self.rows, -1), self.bits, self.columns), scales, bias=bias)
