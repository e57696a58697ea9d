"""GPTQ and AWQ, which store a matrix as [inputs, outputs], but for AWQ's layout `gemv`.

Sources: `utils/model.py` of GPTQModel, and `awq/utils/packing_utils.py` and `modules/linear/gemv.py` of AutoAWQ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quant.errors import BadValues
from quant.plan import Transform
from quant.stream.packed.bits import unpack_columns, unpack_dense, unpack_interleaved
from quant.stream.packed.codes import WEIGHTS, CodePacking, Scales
from quant.stream.packed.floats import NUMPY, widened
from quant.types import QuantType


@dataclass(frozen=True, slots=True)
class PackedGptq(CodePacking):
    """GPTQ: words int32[columns * bits / 32, rows], zeros int32[groups, rows * bits / 32], scales [groups, rows].

    `added` is what a stored zero lacks: 1 in the first version of the format. `scale` is the safetensors type of the
    scales. With `indexed` a further int32[columns] says which group each column belongs to.
    """

    rows: int
    columns: int
    groups: int
    bits: int
    scale: str
    added: int
    indexed: bool
    exact: QuantType | None

    @property
    def name(self) -> str:
        """`4-bit codes of GPTQ`."""
        return f"{self.bits}-bit codes of GPTQ"

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Words, zeros, scales, groups."""
        return "<i4", "<i4", NUMPY[self.scale], *(("<i4",) if self.indexed else ())

    def values(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """float32[rows, columns]."""
        if self.indexed:
            group = arrays[3]
            if group.min() < 0 or group.max() >= self.groups:
                raise BadValues("a group is out of its range", WEIGHTS)
            if not self._in_order(group):
                scales = self.scales(arrays)
                assert scales.zeros is not None
                found = self.levels(arrays, 0, self.rows) - scales.zeros[:, group].astype(np.float32)
                found *= scales.factors[:, group]
                return found
        return CodePacking.values(self, arrays)  # a class with slots is made anew, which `super()` misses

    def blocks(self, arrays: Sequence[np.ndarray], transform: Transform | None) -> np.ndarray:
        """uint8[rows, bytes] of `exact`; BadValues where the columns are not in the order of their groups."""
        if self.indexed and not self._in_order(arrays[3]):
            raise BadValues("its groups are out of order (`g_idx`), and the configuration says they are not", WEIGHTS)
        return CodePacking.blocks(self, arrays, transform)

    def _in_order(self, group: np.ndarray) -> bool:
        return np.array_equal(group, np.arange(self.columns) // (self.columns // self.groups))

    def scales(self, arrays: Sequence[np.ndarray]) -> Scales:
        """A scale and a zero for each group."""
        zeros = unpack_dense(arrays[1].reshape(self.groups, -1), self.bits, self.rows).T.astype(np.int16) + self.added
        factors = widened(arrays[2].reshape(self.groups, self.rows)).T
        return Scales(np.ascontiguousarray(factors), np.ascontiguousarray(zeros))

    def levels(self, arrays: Sequence[np.ndarray], first: int, last: int) -> np.ndarray:
        """As `CodePacking`."""
        return unpack_columns(arrays[0].reshape(-1, self.rows), self.bits, self.columns, first, last)


@dataclass(frozen=True, slots=True)
class PackedAwq(CodePacking):
    """AWQ, 4 bits: words int32[columns, rows / 8], scales [groups, rows], zeros int32[groups, rows / 8] if `zeroed`."""

    rows: int
    columns: int
    groups: int
    scale: str
    zeroed: bool
    exact: QuantType | None

    @property
    def name(self) -> str:
        """`4-bit codes of AWQ`."""
        return "4-bit codes of AWQ"

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Words, scales, zeros."""
        return "<i4", NUMPY[self.scale], *(("<i4",) if self.zeroed else ())

    def scales(self, arrays: Sequence[np.ndarray]) -> Scales:
        """A scale and a zero for each group."""
        factors = np.ascontiguousarray(widened(arrays[1].reshape(self.groups, self.rows)).T)
        zeros = np.full(factors.shape, 8, np.int16)
        if self.zeroed:
            zeros = unpack_interleaved(arrays[2].reshape(self.groups, -1), 0, self.rows).astype(np.int16)
        return Scales(factors, zeros)

    def levels(self, arrays: Sequence[np.ndarray], first: int, last: int) -> np.ndarray:
        """As `CodePacking`."""
        return unpack_interleaved(arrays[0].reshape(self.columns, -1), first, last)


@dataclass(frozen=True, slots=True)
class PackedGemv(CodePacking):
    """AWQ's layout `gemv`, 4 bits: words int32[rows, columns / 8], zeros int32[rows, words], scales [rows, words * 8].

    The first `groups` zeros and scales of a row count.
    """

    rows: int
    columns: int
    groups: int
    scale: str
    exact: QuantType | None

    @property
    def name(self) -> str:
        """`4-bit codes of AWQ`."""
        return "4-bit codes of AWQ"

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Words, zeros, scales."""
        return "<i4", "<i4", NUMPY[self.scale]

    def scales(self, arrays: Sequence[np.ndarray]) -> Scales:
        """A scale and a zero for each group."""
        zeros = unpack_dense(arrays[1].reshape(self.rows, -1), 4, self.groups).astype(np.int16)
        factors = widened(arrays[2]).reshape(self.rows, -1)[:, : self.groups]
        return Scales(np.ascontiguousarray(factors), zeros)

    def levels(self, arrays: Sequence[np.ndarray], first: int, last: int) -> np.ndarray:
        """As `CodePacking`."""
        return unpack_dense(arrays[0].reshape(self.rows, -1)[first:last], 4, self.columns)
