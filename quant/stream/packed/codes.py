"""Integer codes with a scale for every group, as blocks of a GGML type or as numbers.

A weight is scale * (code - zero), or scale * code + bias. The types Q4_0, Q5_0 and Q8_0 hold the first where the zero
is theirs, Q4_1 and Q5_1 the second. A block's scale is a float16, so codes are the same to the bit and a scale is
rounded once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from quant.errors import BadValues
from quant.plan import Transform
from quant.types import QuantType

BLOCK = 32
# The hint where packed weights cannot be used.
WEIGHTS = "use the repository with the original weights"
# The code that stands for 0 in a type that has no minimum; the bits of a code in one that has.
_ZERO = {QuantType.Q4_0: 8, QuantType.Q5_0: 16, QuantType.Q8_0: 128}
_BITS_WITH_MINIMUM = {QuantType.Q4_1: 4, QuantType.Q5_1: 5}
# Rows that are taken apart together: a multiple of the first, and about as many codes as the second says.
ALIGNED = 128
_STEP = 1 << 19


class Scales(NamedTuple):
    """Scales of a matrix of codes, for groups of equal length: `factors` float32[rows, groups].

    Either `zeros` int16[rows, groups] or `bias` float32[rows, groups] is there.
    """

    factors: np.ndarray
    zeros: np.ndarray | None = None
    bias: np.ndarray | None = None

    def rows(self, first: int, last: int) -> Scales:
        """The scales of the rows `first` to `last`."""
        return Scales(*(None if each is None else each[first:last] for each in self))  # type: ignore[arg-type]

    def numbers(self, levels: np.ndarray, out: np.ndarray) -> None:
        """Fill float32[rows, columns] with what uint8[rows, columns] stand for."""
        from quant.kernels import unpacking

        shift = np.zeros(self.factors.shape, np.int32) if self.zeros is None else -self.zeros.astype(np.int32)
        bias = np.empty(0, np.float32) if self.bias is None else self.bias
        flat = (np.ascontiguousarray(each).reshape(-1) for each in (levels, self.factors, shift, bias))
        unpacking.numbers(*flat, out.reshape(-1))

    def fill(self, type: QuantType, levels: np.ndarray, out: np.ndarray) -> None:
        """Fill blocks of `type` with uint8[rows, columns]; BadValues where it cannot hold a code or a scale."""
        from quant.kernels import unpacking

        with np.errstate(over="ignore", invalid="ignore"):
            d = self.factors.astype(np.float16)
            low = np.empty(0, np.float16)
            if type in _BITS_WITH_MINIMUM:
                exact = self.bias if self.zeros is None else -self.zeros * d.astype(np.float32)
                low = exact.astype(np.float16)  # type: ignore[union-attr]
        check_numbers(self.factors, self.bias)
        if not (np.isfinite(d).all() and np.isfinite(low).all()):
            most = np.abs(self.factors).max()
            raise BadValues(f"a scale of {most:g} is beyond float16, which {type.name} has", WEIGHTS)
        shift = np.zeros(d.shape, np.int32)
        if type in _ZERO:
            assert self.zeros is not None, "a bias has no place in this type"
            shift = _ZERO[type] - self.zeros.astype(np.int32)
        bits = _BITS_WITH_MINIMUM.get(type) or _ZERO[type].bit_length()
        each = levels.size // d.size // BLOCK
        flat = np.ascontiguousarray(levels).reshape(-1), d.reshape(-1).view(np.uint16), low.reshape(-1).view(np.uint16)
        if not unpacking.fill(*flat, shift.reshape(-1), bits, each, out.reshape(-1, type.block_bytes)):
            raise BadValues("a code or a zero point is out of its range", WEIGHTS)


class CodePacking(ABC):
    """A packing of integer codes, taken apart some rows at a time. Its `exact` holds the codes as they are."""

    __slots__ = ()
    rows: int
    columns: int
    exact: QuantType | None

    @abstractmethod
    def scales(self, arrays: Sequence[np.ndarray]) -> Scales:
        """The scales of the whole matrix."""

    @abstractmethod
    def levels(self, arrays: Sequence[np.ndarray], first: int, last: int) -> np.ndarray:
        """The codes of the rows `first`, a multiple of 128, to `last`: uint8[rows, columns]."""

    def values(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """float32[rows, columns]; BadValues where a scale is no number."""
        scales, found = self.scales(arrays), np.empty((self.rows, self.columns), np.float32)
        check_numbers(scales.factors, scales.bias)
        for first, last in self._steps():
            scales.rows(first, last).numbers(self.levels(arrays, first, last), found[first:last])
        return found

    def blocks(self, arrays: Sequence[np.ndarray], transform: Transform | None) -> np.ndarray:
        """uint8[rows, bytes] of `exact`; BadValues where it cannot hold a code or a scale."""
        assert self.exact is not None
        scales, found = self.scales(arrays), np.empty((self.rows, self.exact.row_bytes(self.columns)), np.uint8)
        for first, last in self._steps():
            scales.rows(first, last).fill(self.exact, self.levels(arrays, first, last), found[first:last])
        return transform.apply(found) if transform else found

    def _steps(self) -> Iterator[tuple[int, int]]:
        """Rows that are taken apart together, so that their codes stay in a cache."""
        step = max(1, _STEP // self.columns // ALIGNED) * ALIGNED
        return ((first, min(first + step, self.rows)) for first in range(0, self.rows, step))


def exact_type(bits: int, symmetric: bool, columns: int, groups: int) -> QuantType | None:
    """The smallest type that holds codes of `bits` bits; None where none does.

    `symmetric`: the zero is the middle code. A group has to be made of whole blocks of 32.
    """
    if columns % groups or columns // groups % BLOCK:
        return None
    if symmetric:
        return QuantType.Q4_0 if bits <= 4 else QuantType.Q5_0 if bits == 5 else QuantType.Q8_0
    return QuantType.Q4_1 if bits <= 4 else QuantType.Q5_1 if bits == 5 else None


def check_numbers(*arrays: np.ndarray | None) -> None:
    """Raises BadValues where some of these scales are no finite numbers."""
    if not all(np.isfinite(array).all() for array in arrays if array is not None):
        raise BadValues("a scale is no number", WEIGHTS)
