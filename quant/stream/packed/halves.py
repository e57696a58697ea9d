"""HQQ: codes whose places in a word are far apart, with a scale and a real zero for each group.

A matrix is reshaped to lines, [groups, group] where groups lie along its rows (axis 1), or [group, groups] (axis 0). A
word holds the codes of lines that are as far apart as there are words; the first of them has the highest bits. Source:
`core/bitpack.py` and `core/quantize.py` of hqq.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quant.stream.packed.codes import CodePacking, Scales, check_numbers
from quant.stream.packed.floats import NUMPY, widened
from quant.types import QuantType


@dataclass(frozen=True, slots=True)
class PackedHqq(CodePacking):
    """Words uint8 or int32 [words, length], scales and zeros [groups] of the safetensors type `scale`.

    `per` codes share a word, `width` bits each, of which `bits` count. With `across` a group is a column of the lines.
    """

    rows: int
    columns: int
    group: int
    bits: int
    per: int
    width: int
    scale: str
    across: bool
    exact: QuantType | None

    @property
    def name(self) -> str:
        """`4-bit codes of HQQ`."""
        return f"{self.bits}-bit codes of HQQ"

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Words, scales, zeros."""
        return "<i4" if self.per == 10 else "u1", NUMPY[self.scale], NUMPY[self.scale]

    def values(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """float32[rows, columns]; BadValues where a scale is no number."""
        if not self.across:
            return CodePacking.values(self, arrays)  # a class with slots is made anew, which `super()` misses
        factors, zeros = widened(arrays[1]), widened(arrays[2])
        check_numbers(factors, zeros)
        found = self._lines(arrays[0], 0, self.group, factors.size).astype(np.float32)
        found -= zeros
        found *= factors
        return found.reshape(self.rows, self.columns)

    def scales(self, arrays: Sequence[np.ndarray]) -> Scales:
        """A scale and a bias for each group."""
        factors, zeros = (widened(each).reshape(self.rows, -1) for each in arrays[1:])
        return Scales(factors, bias=-zeros * factors)

    def levels(self, arrays: Sequence[np.ndarray], first: int, last: int) -> np.ndarray:
        """As `CodePacking`."""
        each = self.columns // self.group
        return self._lines(arrays[0], first * each, last * each, self.group).reshape(last - first, self.columns)

    def _lines(self, words: np.ndarray, first: int, last: int, length: int) -> np.ndarray:
        """Lines `first` to `last`: uint8[lines, length]."""
        words = words.reshape(-1, length)
        found, apart = np.empty((last - first, length), np.uint8), len(words)
        for place in range(self.per):
            begin, end = max(first, place * apart), min(last, (place + 1) * apart)
            if begin < end:
                some = words[begin - place * apart : end - place * apart] >> self.width * (self.per - 1 - place)
                found[begin - first : end - first] = some & (1 << self.width) - 1
        return found
