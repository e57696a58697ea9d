"""How Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL and IQ4_XS lie in memory, and what the parts stand for.

Source of the layouts: `block_q4_0` … `block_iq4_xs` in llama.cpp's ggml-common.h. In all of them a byte holds the low
four bits of two elements, 16 apart; the fifth bits of a block of 32 form one little-endian word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from quant.kernels.formats import Bytes, Floats, Parts, halves, put_half
from quant.kernels.vectors.compiler import kernel
from quant.kernels.vectors.simd import LANES, lane_bits, load, store_from

# Values of the 4-bit levels of IQ4_NL and IQ4_XS (`kvalues_iq4nl`).
IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)


class Layout(NamedTuple):
    """The functions of a `Format` that depend on how a block lies in memory."""

    pack: Callable[[Parts, Bytes], None]
    unpack: Callable[[Bytes], Parts]
    restore: Callable[[Parts], Floats]


@kernel("void(uint8[::1], uint8[:, ::1], int64, int64)")
def _pack_levels(levels, out, first, fifths):
    """Write the levels of all blocks: low halves from byte `first` on, fifth bits from byte `fifths` on.

    `fifths` is 0 for levels of four bits.
    """
    vectors = levels.size // (len(out) * LANES)
    for b in range(len(out)):
        to = out[b]
        for pair in range(vectors // 2):
            even = load(levels, b * vectors + pair * 2)
            odd = load(levels, b * vectors + pair * 2 + 1)
            store_from(to, first + pair * LANES, even & 15 | odd << 4)
            if fifths != 0:
                bits = lane_bits((even & 16) != 0) | lane_bits((odd & 16) != 0) << LANES
                for byte in range(4):
                    to[fifths + byte] = bits >> byte * 8 & 255


def pack_levels(levels: Bytes, out: Bytes, first: int, fifths: int = 0) -> None:
    """Write levels uint8[n, block] into blocks: two low halves to a byte, 16 elements apart, from byte `first` on.

    The fifth bits go to the four bytes from `fifths` on; 0 for levels of four bits.
    """
    _pack_levels(np.ascontiguousarray(levels).ravel(), out, first, fifths)


def nibbles(packed: Bytes, gap: int = 16) -> Bytes:
    """The levels in bytes that hold two each, `gap` elements apart: uint8[n, bytes] → uint8[n, 2 · bytes]."""
    rows = packed.reshape(len(packed), -1, 1, gap) >> np.array([0, 4], np.uint8).reshape(2, 1)
    return (rows & np.uint8(15)).reshape(len(packed), -1)


def _fifths(packed: Bytes) -> Bytes:
    return np.unpackbits(packed, axis=1, bitorder="little") << 4


def _layout(fifths: bool, offset: int, minimum: bool) -> Layout:
    """The layout of blocks of 32: d, the minimum if there is one, fifth bits if there are any, nibbles.

    A level l stands for (l − offset)·d, or for l·d + minimum.
    """
    high = 4 if minimum else 2
    low = high + 4 if fifths else high

    def pack(parts: Parts, out: Bytes) -> None:
        pack_levels(parts.levels, out, low, high if fifths else 0)
        put_half(out, 0, parts.d)
        if minimum:
            put_half(out, 2, parts.dmin)

    def unpack(blocks: Bytes) -> Parts:
        levels = nibbles(blocks[:, low:])
        if fifths:
            levels |= _fifths(blocks[:, high : high + 4])
        return Parts(levels, halves(blocks, 0), halves(blocks, 2)) if minimum else Parts(levels, halves(blocks, 0))

    def restore(parts: Parts) -> Floats:
        scaled: Floats = (parts.levels.view(np.int8) - np.int8(offset)) * parts.d.astype(np.float32)[:, None]
        return scaled + parts.dmin.astype(np.float32)[:, None] if minimum else scaled

    return Layout(pack, unpack, restore)


Q4_0 = _layout(fifths=False, offset=8, minimum=False)
Q5_0 = _layout(fifths=True, offset=16, minimum=False)
Q4_1 = _layout(fifths=False, offset=0, minimum=True)
Q5_1 = _layout(fifths=True, offset=0, minimum=True)


def _pack_iq4_nl(parts: Parts, out: Bytes) -> None:
    pack_levels(parts.levels, out, 2)
    put_half(out, 0, parts.d)


def _unpack_iq4_nl(blocks: Bytes) -> Parts:
    return Parts(nibbles(blocks[:, 2:]), halves(blocks, 0))


def _restore_iq4_nl(parts: Parts) -> Floats:
    """d·value[level]."""
    values: Floats = parts.d.astype(np.float32)[:, None] * IQ4_VALUES[parts.levels]
    return values


def _pack_iq4_xs(parts: Parts, out: Bytes) -> None:
    """136 bytes: d, 16 bits with the top two of each scale, 4 bytes with the low four, nibbles. Scales + 32."""
    pack_levels(parts.levels, out, 8)
    put_half(out, 0, parts.d)
    scales = parts.scales
    tops = (scales >> 4).reshape(-1, 2, 4) << np.array([0, 2, 4, 6], np.uint8)
    out[:, 2:4] = np.bitwise_or.reduce(tops, axis=2)
    out[:, 4:8] = scales[:, ::2] & 15 | scales[:, 1::2] << 4


def _unpack_iq4_xs(blocks: Bytes) -> Parts:
    tops = (blocks[:, 2:4, None] >> np.array([0, 2, 4, 6], np.uint8) & np.uint8(3)).reshape(-1, 8)
    lows = (blocks[:, 4:8, None] >> np.array([0, 4], np.uint8) & np.uint8(15)).reshape(-1, 8)
    return Parts(nibbles(blocks[:, 8:]), halves(blocks, 0), scales=tops << 4 | lows)


def _restore_iq4_xs(parts: Parts) -> Floats:
    """(d·(scale − 32))·value[level]."""
    scale = parts.d.astype(np.float32)[:, None] * (parts.scales.view(np.int8) - np.int8(32))
    values: Floats = scale[:, :, None] * IQ4_VALUES[parts.levels].reshape(-1, 8, 32)
    return values.reshape(-1, 256)


IQ4_NL = Layout(_pack_iq4_nl, _unpack_iq4_nl, _restore_iq4_nl)
IQ4_XS = Layout(_pack_iq4_xs, _unpack_iq4_xs, _restore_iq4_xs)

KERNELS = (_pack_levels,)
