"""Q8_0: blocks of 32, x ≈ d·level, levels −127 … 127 in a byte each, d float16 (`block_q8_0` in ggml-common.h).

There is nothing to search for: the largest magnitude gets level 127. The family has a module of its own, so that a
first pull at Q8_0 compiles no other family.
"""

from __future__ import annotations

import numpy as np

from quant.kernels.formats import Bytes, Floats, Format, Parts, halves, register
from quant.kernels.vectors.compiler import kernel
from quant.kernels.vectors.half import from_half, to_half
from quant.kernels.vectors.simd import (
    LANES,
    absolute,
    integers,
    load,
    maximum,
    minimum,
    read_tile,
    rint,
    splat,
    store,
    where,
    write_tile,
)
from quant.types import QuantType

_BLOCK = 32


@kernel("void(float32[::1], uint8[::1], uint16[::1])")
def _search(source, levels, d_out):
    x = np.empty(_BLOCK * LANES, np.float32)
    tile = np.empty(_BLOCK * LANES, np.uint8)
    for t in range(len(d_out) // LANES):
        read_tile(source, t, _BLOCK, x)
        peak = splat(0.0)
        for i in range(_BLOCK):
            peak = maximum(peak, absolute(load(x, i)))
        half = to_half(peak / 127)
        d = from_half(half)
        inverse = where(d > 0, splat(1.0) / d, 0)
        store(d_out, t, half)
        for i in range(_BLOCK):
            store(tile, i, integers(minimum(maximum(rint(load(x, i) * inverse), -127), 127)))
        write_tile(tile, t, _BLOCK, levels)


def search(x: Floats, weights: Floats | None) -> Parts:
    """Levels are signed bytes; weights make no difference."""
    levels, d = np.empty(x.shape, np.uint8), np.empty(len(x), np.uint16)
    _search(x.ravel(), levels.ravel(), d)
    return Parts(levels, d.view(np.float16))


def pack(parts: Parts, out: Bytes) -> None:
    """34 bytes: d, 32 levels."""
    out[:, :2] = parts.d.view(np.uint8).reshape(-1, 2)
    out[:, 2:] = parts.levels


def unpack(blocks: Bytes) -> Parts:
    """The inverse of `pack`."""
    return Parts(blocks[:, 2:], halves(blocks, 0))


def restore(parts: Parts) -> Floats:
    """d·level."""
    return parts.d.astype(np.float32)[:, None] * parts.levels.view(np.int8)


register(QuantType.Q8_0, Format(search, pack, unpack, restore, 65504.0 * 127), _search)
