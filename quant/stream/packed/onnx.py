"""Layouts of ONNX Runtime: codes of a few bits in blocks along each row (MatMulNBits), and float matrices turned round.

Sources: `ContribOperators.md` of ONNX Runtime, and `matmul_nbits_quantizer.py` there, which writes these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quant.plan import Transform
from quant.stream.packed.bits import unpack_dense
from quant.stream.packed.codes import CodePacking, Scales
from quant.stream.packed.floats import NUMPY, widened
from quant.types import QuantType


@dataclass(frozen=True, slots=True)
class PackedBits:
    """Codes uint8[rows, bytes], lowest bits first, scales [rows, blocks] of the type `scale`.

    A row has whole blocks of `block` codes, of which the first `columns` count. `zeros` is the type of the zeros that
    follow, "" without: U8 for codes, packed in each row as the weights are, or the type of the scales for numbers. A
    code without a zero counts from the middle; with `signed` it is a two's complement.
    """

    columns: int
    block: int
    bits: int
    scale: str
    zeros: str
    signed: bool
    exact: QuantType | None

    @property
    def name(self) -> str:
        """`4-bit codes of ONNX`."""
        return f"{self.bits}-bit codes of ONNX"

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Codes, scales, zeros."""
        return "u1", NUMPY[self.scale], *((NUMPY[self.zeros],) if self.zeros else ())

    @property
    def groups(self) -> int:
        """The blocks of a row."""
        return -(-self.columns // self.block)

    @property
    def row_bytes(self) -> int:
        """The bytes of a row's codes."""
        return self.groups * self.block * self.bits // 8

    def values(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """float32[rows, columns]; BadValues where a scale is no number."""
        return np.ascontiguousarray(self._whole(arrays).values(arrays)[:, : self.columns])

    def blocks(self, arrays: Sequence[np.ndarray], transform: Transform | None) -> np.ndarray:
        """uint8[rows, bytes] of `exact`; BadValues where it cannot hold a code or a scale."""
        assert self.exact is not None
        found = self._whole(arrays).blocks(arrays, None)
        found = np.ascontiguousarray(found[:, : self.exact.row_bytes(self.columns)])
        return transform.apply(found) if transform else found

    def _whole(self, arrays: Sequence[np.ndarray]) -> _WholeBlocks:
        return _WholeBlocks(self, arrays[0].size // self.row_bytes, self.groups * self.block, self.exact)


@dataclass(frozen=True, slots=True)
class _WholeBlocks(CodePacking):
    """The rows of some codes, as wide as their blocks: the last block may have columns that do not count."""

    packing: PackedBits
    rows: int
    columns: int
    exact: QuantType | None

    def scales(self, arrays: Sequence[np.ndarray]) -> Scales:
        """A scale and a zero or a bias for each block."""
        bits, kind, groups = self.packing.bits, self.packing.zeros, self.packing.groups
        factors = widened(arrays[1]).reshape(-1, groups)
        if not kind:
            return Scales(factors, np.full(factors.shape, 1 << (bits - 1), np.int16))
        if kind != "U8":
            return Scales(factors, bias=-widened(arrays[2]).reshape(factors.shape) * factors)
        return Scales(factors, unpack_dense(arrays[2].reshape(self.rows, -1), bits, groups).astype(np.int16))

    def levels(self, arrays: Sequence[np.ndarray], first: int, last: int) -> np.ndarray:
        """As `CodePacking`."""
        rows = arrays[0].reshape(self.rows, -1)[first:last]
        found = unpack_dense(rows, self.packing.bits, self.columns)
        return found ^ np.uint8(1 << (self.packing.bits - 1)) if self.packing.signed else found


@dataclass(frozen=True, slots=True)
class Turned:
    """A float matrix that is stored as [columns, rows]: `rows` of its rows from number `first` on; 0 stands for all."""

    columns: int
    dtype: str
    first: int = 0
    rows: int = 0
    exact: QuantType | None = None

    @property
    def name(self) -> str:
        """The type of the numbers, which are as they were trained."""
        return self.dtype

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The matrix alone."""
        return (NUMPY[self.dtype],)

    def values(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """[rows, columns] of the source's type."""
        rows = arrays[0].reshape(self.columns, -1)[:, self.first :]
        return np.ascontiguousarray(rows[:, : self.rows or None].T)

    def blocks(self, arrays: Sequence[np.ndarray], transform: Transform | None) -> np.ndarray:
        """No GGML type is meant."""
        raise NotImplementedError(self.name)
