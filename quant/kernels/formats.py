"""The interface of a block format (`Parts`, `Format`), and the register of formats by type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quant.kernels.vectors.compiler import Kernel
from quant.types import QuantType

# Arrays of uint8, float32 and float16. They are `Any` because numpy's type stubs lose the dtype in arithmetic.
Bytes = NDArray[Any]
Floats = NDArray[Any]
Halves = NDArray[Any]

# Numbers for kernels: the 16 or 32 bits of a value are a float32, a float16 or a BF16.
FLOAT, HALF, BRAIN = 0, 1, 2


def halves(blocks: Bytes, at: int) -> Halves:
    """The float16 that each block holds at byte `at`: uint8[n, block_bytes] → float16[n]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16)[:, 0]


def put_half(out: Bytes, at: int, value: Halves) -> None:
    """Write float16[n] into the blocks uint8[n, block_bytes], each at byte `at`: the inverse of `halves`."""
    out[:, at : at + 2] = value.view(np.uint8).reshape(-1, 2)


class Parts(NamedTuple):
    """The parts of n blocks before packing, in the order of their elements. Unused fields are empty.

    levels: uint8[n, block], the number of each element as it is stored. Signed levels have the format's offset added:
        Q4_0 stores −8 … 7 as 0 … 15. Only Q8_0 stores signed bytes, as their bits. In formats with a grid of vectors
        uint16[n, vectors]: the index of each vector.
    d: float16[n], the block's scale.
    dmin: float16[n], the scale of the block's minima; in Q4_1 and Q5_1 the minimum itself.
    scales, minima: uint8[n, groups], the small integers that multiply `d` and `dmin` in each group, as they are stored,
        an offset included. In IQ1, `minima` has 1 where the shift is negative.
    signs: uint8[n, block / 8], one bit per element, lowest bit first; set for a negative element.
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
    """The four functions of a type. Each takes n blocks at a time; for `search` n is a multiple of 16."""

    search: Callable[[Floats, Floats | None], Parts]
    """(x float32[n, block], weights float32[n, block] or None) → parts for which Σ weight·(x − x̂)² is small."""
    pack: Callable[[Parts, Bytes], None]
    """(parts, out uint8[n, block_bytes]): writes the parts into `out`."""
    unpack: Callable[[Bytes], Parts]
    """uint8[n, block_bytes] → parts: the inverse of `pack`."""
    restore: Callable[[Parts], Floats]
    """parts → float32[n, block]: the values of the elements, bit for bit as ggml computes them."""
    limit: float
    """The largest magnitude that an element may have: `quantize` cuts larger ones to it before the search."""


class _Registered(NamedTuple):
    """A format, and the kernels that its `search` and `pack` call."""

    format: Format
    kernels: tuple[Kernel, ...]


_formats: dict[str, _Registered] = {}


def register(type: QuantType, format: Format, *kernels: Kernel) -> None:
    """Add the format of a type, whose `search` and `pack` call these kernels; its family's module does so."""
    _formats[type.name] = _Registered(format, kernels)


def registered(type: QuantType) -> Format:
    """The format of a type whose family is imported."""
    return _formats[type.name].format


def kernels_of(type: QuantType) -> tuple[Kernel, ...]:
    """The kernels of a type whose family is imported."""
    return _formats[type.name].kernels
