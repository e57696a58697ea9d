"""Layouts that store a matrix row by row: compressed-tensors, torchao, and MLX.

Sources: `compressors/` of compressed-tensors, `quantize_/workflows/` of torchao, and `mlx.core.quantize` of MLX.
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
    """compressed-tensors: words int32[rows, …], scales [rows, groups].

    A code is stored plus half of its range, so that it is never negative. With `zeroed` zeros follow, packed along the
    rows: int32[rows * bits / 32, groups]. With `dense` codes straddle words, as they do since May 2026.
    """

    rows: int
    columns: int
    groups: int
    bits: int
    scale: str
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
        return "<i4", NUMPY[self.scale], *(("<i4",) if self.zeroed else ())

    def scales(self, arrays: Sequence[np.ndarray]) -> Scales:
        """A scale and a zero for each group."""
        factors = widened(arrays[1]).reshape(self.rows, self.groups)
        zeros = np.full(factors.shape, 1 << (self.bits - 1), np.int16)
        if self.zeroed:
            along = arrays[2].reshape(-1, self.groups).T
            zeros = np.ascontiguousarray(self._unpack(along, self.rows).T).astype(np.int16)
        return Scales(factors, zeros)

    def levels(self, arrays: Sequence[np.ndarray], first: int, last: int) -> np.ndarray:
        """As `CodePacking`."""
        return self._unpack(arrays[0].reshape(self.rows, -1)[first:last], self.columns)

    def _unpack(self, words: np.ndarray, count: int) -> np.ndarray:
        return (unpack_dense if self.dense else unpack_words)(words, self.bits, count)


@dataclass(frozen=True, slots=True)
class PackedBytes(CodePacking):
    """Signed bytes int8[rows, columns], scales [rows, groups] or [1], and with `zeroed` zeros int8 of the same shape.

    A byte may hold a code of fewer `bits`.
    """

    rows: int
    columns: int
    groups: int
    bits: int
    scale: str
    zeroed: bool
    maker: str
    exact: QuantType | None

    @property
    def name(self) -> str:
        """`8-bit codes of torchao`."""
        return f"{self.bits}-bit codes of {self.maker}"

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Codes, scales, zeros."""
        return "i1", NUMPY[self.scale], *(("i1",) if self.zeroed else ())

    def scales(self, arrays: Sequence[np.ndarray]) -> Scales:
        """A scale and a zero for each group."""
        factors, zeros = widened(arrays[1]).reshape(-1, self.groups), np.full((self.rows, self.groups), 128, np.int16)
        if self.zeroed:
            zeros += arrays[2].reshape(-1, self.groups)
        return Scales(np.ascontiguousarray(np.broadcast_to(factors, zeros.shape)), zeros)

    def levels(self, arrays: Sequence[np.ndarray], first: int, last: int) -> np.ndarray:
        """As `CodePacking`, 128 more than they are stored."""
        return (arrays[0].reshape(self.rows, self.columns)[first:last] ^ np.int8(-128)).view(np.uint8)


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
