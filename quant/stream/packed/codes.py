"""Integer codes with a scale for every group, as blocks of a GGML type or as numbers.

A weight is scale * (code - zero), or scale * code + bias. The types Q4_0, Q5_0 and Q8_0 hold the first where the zero
is theirs, Q4_1 and Q5_1 the second. A block's scale is a float16, so codes are the same to the bit and a scale is
rounded once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from quant.errors import BadValues
from quant.plan import Transform
from quant.types import QuantType

BLOCK = 32
# The hint where packed weights cannot be used.
WEIGHTS = "use the repository with the original weights"
# The code that stands for 0 in a type that has no minimum; the largest code in one that has.
_ZERO = {QuantType.Q4_0: 8, QuantType.Q5_0: 16, QuantType.Q8_0: 128}
_MOST = {QuantType.Q4_1: 15, QuantType.Q5_1: 31}


class Codes(NamedTuple):
    """A matrix of codes: `levels` uint8[rows, columns], `scales` float32[rows, groups], groups of equal length.

    Either `zeros` int16[rows, groups] or `bias` float32[rows, groups] is there.
    """

    levels: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None = None
    bias: np.ndarray | None = None

    def moved(self, transform: Transform | None) -> Codes:
        """The same with the rows that `transform` leaves, in its order."""
        if transform is None:
            return self
        zeros, bias = (None if each is None else transform.apply(each) for each in (self.zeros, self.bias))
        return Codes(transform.apply(self.levels), transform.apply(self.scales), zeros, bias)

    def values(self) -> np.ndarray:
        """float32[rows, columns]; BadValues where a scale is no number."""
        _check(self.scales, self.bias)
        rows, groups = self.scales.shape
        found = self.levels.reshape(rows, groups, -1).astype(np.float32)
        if self.zeros is not None:
            found -= self.zeros[:, :, None]
        found *= self.scales[:, :, None]
        if self.bias is not None:
            found += self.bias[:, :, None]
        return found.reshape(rows, -1)

    def blocks(self, type: QuantType) -> np.ndarray:
        """uint8[rows, bytes] of `type`; BadValues where it cannot hold a code or a scale."""
        from quant.kernels import blocks as kernels
        from quant.kernels.formats import Parts

        rows, groups = self.scales.shape
        with np.errstate(over="ignore"):
            d = self.scales.astype(np.float16)
        minimum = None
        if type in _ZERO:
            assert self.zeros is not None, "a bias has no place in this type"
            levels = self.levels.reshape(rows, groups, -1).astype(np.int16) - self.zeros[:, :, None] + _ZERO[type]
            _check_range(levels, 2 * _ZERO[type] - 1)
            levels = (levels - 128 if type is QuantType.Q8_0 else levels).astype(np.uint8)
        else:
            levels = self.levels
            _check_range(levels, _MOST[type])
            exact = self.bias if self.zeros is None else -self.zeros * d.astype(np.float32)
            with np.errstate(over="ignore"):
                minimum = exact.astype(np.float16)  # type: ignore[union-attr]
        _check(d, minimum)
        each = self.levels.shape[1] // groups // BLOCK
        parts = Parts(levels.reshape(-1, BLOCK), np.repeat(d.reshape(-1), each))
        if minimum is not None:
            parts = parts._replace(dmin=np.repeat(minimum.reshape(-1), each))
        return kernels.pack(type, parts).reshape(rows, -1)


class CodePacking(ABC):
    """A packing of integer codes. A layout says how its arrays become `Codes`; its `exact` holds them as they are."""

    __slots__ = ()
    exact: QuantType | None

    @abstractmethod
    def codes(self, arrays: Sequence[np.ndarray]) -> Codes:
        """The codes in the order of the matrix's rows and columns."""

    def values(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """float32[rows, columns]."""
        return self.codes(arrays).values()

    def blocks(self, arrays: Sequence[np.ndarray], transform: Transform | None) -> np.ndarray:
        """uint8[rows, bytes] of `exact`."""
        assert self.exact is not None
        return self.codes(arrays).moved(transform).blocks(self.exact)


def exact_type(bits: int, symmetric: bool, columns: int, groups: int) -> QuantType | None:
    """The smallest type that holds codes of `bits` bits; None where none does.

    `symmetric`: the zero is the middle code. A group has to be made of whole blocks of 32.
    """
    if columns % groups or columns // groups % BLOCK:
        return None
    if symmetric:
        return QuantType.Q4_0 if bits <= 4 else QuantType.Q5_0 if bits == 5 else QuantType.Q8_0
    return QuantType.Q4_1 if bits <= 4 else QuantType.Q5_1 if bits == 5 else None


def _check(*arrays: np.ndarray | None) -> None:
    if not all(np.isfinite(array).all() for array in arrays if array is not None):
        raise BadValues("a scale is no number", WEIGHTS)


def _check_range(levels: np.ndarray, most: int) -> None:
    if levels.size and (levels.min() < 0 or levels.max() > most):
        raise BadValues("a code or a zero point is out of its range", WEIGHTS)
