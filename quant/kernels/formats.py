"""What a family of block formats has to offer, and the register in which it enters itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quant.types import QuantType

# Arrays of uint8, float32 and float16; numpy's type stubs lose the dtype in arithmetic.
Bytes = NDArray[Any]
Floats = NDArray[Any]
Halves = NDArray[Any]


# How source or result store one number: float32, float16, BF16.
FLOAT, HALF, BRAIN = 0, 1, 2


def halves(blocks: Bytes, at: int) -> Halves:
    """The float16 that each block holds at byte `at`."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16)[:, 0]


class Parts(NamedTuple):
    """What n blocks are made of, in the order of their elements, before packing. Unused fields are empty.

    levels: uint8[n, block], the stored number of each element: never negative, the format's offset included;
        for formats with a codebook of vectors uint16[n, vectors], the index of each.
    d, dmin: float16[n], the block's scale and the scale (or value) of its minima.
    scales, minima: uint8[n, groups], the small integers that multiply `d` and `dmin` in each group, offset included.
    signs: uint8[n, block / 8], one bit per element, set where it is negative.
    """

    levels: NDArray[Any]
    d: Halves = np.empty(0, np.float16)
    dmin: Halves = np.empty(0, np.float16)
    scales: Bytes = np.empty((0, 0), np.uint8)
    minima: Bytes = np.empty((0, 0), np.uint8)
    signs: Bytes = np.empty((0, 0), np.uint8)

    def first(self, count: int) -> Parts:
        """The parts of the first `count` blocks."""
        return Parts(*(part[:count] for part in self))


class Format(NamedTuple):
    """The four things that a type can do. n blocks at a time; `n` is a multiple of 16 in `search`."""

    search: Callable[[Floats, Floats | None], Parts]
    """(x float32[n, block], weights float32[n, block] or None) → the parts that keep Σ weight·(x − x̂)² small."""
    pack: Callable[[Parts, Bytes], None]
    """Write the parts into uint8[n, block_bytes]."""
    unpack: Callable[[Bytes], Parts]
    """The inverse of `pack`."""
    restore: Callable[[Parts], Floats]
    """What the parts stand for: float32[n, block], to the bit as ggml computes it."""
    limit: float
    """The largest magnitude that an element can have."""


_formats: dict[str, Format] = {}


def register(type: QuantType, format: Format) -> None:
    """Enter a type; called by the family's module when it is imported."""
    _formats[type.name] = format


def registered(type: QuantType) -> Format:
    """The format of a type whose family is imported."""
    return _formats[type.name]
