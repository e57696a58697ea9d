"""How Q2_K, Q3_K, Q4_K, Q5_K and Q6_K lie in memory: packing, unpacking, and what the parts stand for.

Source of the layouts: `block_q2_K` … `block_q6_K` in llama.cpp's ggml-common.h. The four rows of elements that share a
byte, or the eight that share a byte of high bits, are 32 elements apart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quant.kernels.formats import Bytes, Floats, Halves, Parts, halves, put_half
from quant.kernels.vectors.compiler import kernel


@kernel("void(uint8[:, ::1], uint8[:, ::1], uint8[:, ::1], uint8[:, ::1], int64)")
def _pack_affine(levels, scales, minima, out, top):
    """Everything but d and dmin of Q2_K (top 3), Q4_K (15), Q5_K (31)."""
    for b in range(len(levels)):
        q = levels[b]
        to = out[b]
        if top == 3:
            for g in range(16):
                to[g] = scales[b, g] | minima[b, g] << 4
            for half in range(2):
                for i in range(32):
                    p = half * 128 + i
                    to[16 + half * 32 + i] = q[p] | q[p + 32] << 2 | q[p + 64] << 4 | q[p + 96] << 6
            continue
        for g in range(4):
            to[4 + g] = scales[b, g] | scales[b, g + 4] >> 4 << 6
            to[8 + g] = minima[b, g] | minima[b, g + 4] >> 4 << 6
            to[12 + g] = scales[b, g + 4] & 15 | minima[b, g + 4] << 4
        nibbles = 16
        if top == 31:
            nibbles = 48
            for i in range(32):
                high = 0
                for g in range(8):
                    high |= (q[g * 32 + i] >> 4) << g
                to[16 + i] = high
        for pair in range(4):
            for i in range(32):
                p = pair * 64 + i
                to[nibbles + pair * 32 + i] = q[p] & 15 | q[p + 32] << 4


@kernel("void(uint8[:, ::1], uint8[:, ::1], uint8[:, ::1], int64)")
def _pack_symmetric(levels, scales, out, top):
    """Everything but d of Q3_K (top 7; scales + 32) and Q6_K (top 63; scales are signed bytes)."""
    for b in range(len(levels)):
        q = levels[b]
        to = out[b]
        if top == 63:
            for half in range(2):
                for i in range(32):
                    p = half * 128 + i
                    to[half * 64 + i] = q[p] & 15 | q[p + 64] << 4
                    to[half * 64 + 32 + i] = q[p + 32] & 15 | q[p + 96] << 4
                    high = q[p] >> 4 | q[p + 32] >> 4 << 2 | q[p + 64] >> 4 << 4 | q[p + 96] >> 4 << 6
                    to[128 + half * 32 + i] = high
            for g in range(16):
                to[192 + g] = scales[b, g]
            continue
        for i in range(32):
            high = 0
            for g in range(8):
                high |= (q[g * 32 + i] >> 2) << g
            to[i] = high
        for half in range(2):
            for i in range(32):
                p = half * 128 + i
                to[32 + half * 32 + i] = q[p] & 3 | (q[p + 32] & 3) << 2 | (q[p + 64] & 3) << 4 | (q[p + 96] & 3) << 6
        for g in range(8):
            to[96 + g] = scales[b, g] & 15 | scales[b, g + 8] << 4
        for g in range(4):
            high = scales[b, g] >> 4 | scales[b, g + 4] >> 4 << 2
            to[104 + g] = high | scales[b, g + 8] >> 4 << 4 | scales[b, g + 12] >> 4 << 6


def _crumbs(packed: Bytes) -> Bytes:
    """64 bytes of four 2-bit numbers each → 256 numbers."""
    rows = packed.reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(4, 1)
    return (rows & np.uint8(3)).reshape(-1, 256)


def _nibbles(packed: Bytes) -> Bytes:
    """128 bytes of two 4-bit numbers each → 256 numbers."""
    rows = packed.reshape(-1, 4, 1, 32) >> np.array([0, 4], np.uint8).reshape(2, 1)
    return (rows & np.uint8(15)).reshape(-1, 256)


def _high_bits(packed: Bytes) -> Bytes:
    """32 bytes, bit k of each belonging to row k → 256 bits."""
    rows = packed.reshape(-1, 1, 32) >> np.arange(8, dtype=np.uint8).reshape(8, 1)
    return (rows & np.uint8(1)).reshape(-1, 256)


def pack_q2(parts: Parts, out: Bytes) -> None:
    """84 bytes: 16 × (scale, minimum << 4), 64 × four levels, d, dmin."""
    _pack_affine(parts.levels, parts.scales, parts.minima, out, 3)
    put_half(out, 80, parts.d)
    put_half(out, 82, parts.dmin)


def unpack_q2(blocks: Bytes) -> Parts:
    """The inverse of `pack_q2`."""
    scales, minima = blocks[:, :16] & np.uint8(15), blocks[:, :16] >> 4
    return Parts(_crumbs(blocks[:, 16:80]), halves(blocks, 80), halves(blocks, 82), scales, minima)


def pack_q4(parts: Parts, out: Bytes) -> None:
    """144 bytes: d, dmin, 12 bytes of scales and minima, 128 × two levels."""
    _pack_affine(parts.levels, parts.scales, parts.minima, out, 15)
    put_half(out, 0, parts.d)
    put_half(out, 2, parts.dmin)


def pack_q5(parts: Parts, out: Bytes) -> None:
    """176 bytes: as Q4_K, with 32 bytes of fifth bits before the nibbles."""
    _pack_affine(parts.levels, parts.scales, parts.minima, out, 31)
    put_half(out, 0, parts.d)
    put_half(out, 2, parts.dmin)


def _unpack_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """12 bytes → eight 6-bit scales, eight 6-bit minima."""
    a, b, c = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([a & np.uint8(63), c & np.uint8(15) | a >> 6 << 4], axis=1)
    minima = np.concatenate([b & np.uint8(63), c >> 4 | b >> 6 << 4], axis=1)
    return scales, minima


def unpack_q4(blocks: Bytes) -> Parts:
    """The inverse of `pack_q4`."""
    return Parts(_nibbles(blocks[:, 16:]), halves(blocks, 0), halves(blocks, 2), *_unpack_scales(blocks[:, 4:16]))


def unpack_q5(blocks: Bytes) -> Parts:
    """The inverse of `pack_q5`."""
    levels = _nibbles(blocks[:, 48:]) | _high_bits(blocks[:, 16:48]) << 4
    return Parts(levels, halves(blocks, 0), halves(blocks, 2), *_unpack_scales(blocks[:, 4:16]))


def restore_affine(parts: Parts) -> Floats:
    """(d·scale)·level − dmin·minimum."""
    groups = parts.scales.shape[1]
    scale = parts.d.astype(np.float32)[:, None] * parts.scales
    low = parts.dmin.astype(np.float32)[:, None] * parts.minima
    levels = parts.levels.reshape(-1, groups, 256 // groups)
    values: Floats = scale[:, :, None] * levels - low[:, :, None]
    return values.reshape(-1, 256)


def pack_q3(parts: Parts, out: Bytes) -> None:
    """110 bytes: 32 bytes of third bits, 64 × four levels' low bits, 12 bytes of scales, d. Levels + 4, scales + 32."""
    _pack_symmetric(parts.levels, parts.scales, out, 7)
    put_half(out, 108, parts.d)


def unpack_q3(blocks: Bytes) -> Parts:
    """The inverse of `pack_q3`."""
    levels = _crumbs(blocks[:, 32:96]) | _high_bits(blocks[:, :32]) << 2
    low, high = blocks[:, 96:104], blocks[:, 104:108]
    tops = np.concatenate([high >> shift & 3 for shift in (0, 2, 4, 6)], axis=1)
    return Parts(levels, halves(blocks, 108), scales=np.concatenate([low & 15, low >> 4], axis=1) | tops << 4)


def restore_q3(parts: Parts) -> Floats:
    """(d·(scale − 32))·(level − 4)."""
    return _symmetric(parts.d, parts.scales.astype(np.int8) - np.int8(32), parts.levels.view(np.int8) - np.int8(4))


def pack_q6(parts: Parts, out: Bytes) -> None:
    """210 bytes: 128 × two levels' low bits, 64 × four levels' high bits, 16 signed scales, d. Levels + 32."""
    _pack_symmetric(parts.levels, parts.scales, out, 63)
    put_half(out, 208, parts.d)


def unpack_q6(blocks: Bytes) -> Parts:
    """The inverse of `pack_q6`."""
    low = blocks[:, :128].reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8).reshape(2, 1) & 15
    levels = low.reshape(-1, 256) | _crumbs(blocks[:, 128:192]) << 4
    return Parts(levels, halves(blocks, 208), scales=blocks[:, 192:208])


def restore_q6(parts: Parts) -> Floats:
    """(d·scale)·(level − 32)."""
    return _symmetric(parts.d, parts.scales.view(np.int8), parts.levels.view(np.int8) - np.int8(32))


def _symmetric(d: Halves, scales: NDArray[np.int8], levels: NDArray[np.int8]) -> Floats:
    scale = d.astype(np.float32)[:, None] * scales
    values: Floats = scale[:, :, None] * levels.reshape(-1, 16, 16)
    return values.reshape(-1, 256)


AFFINE, SYMMETRIC = (_pack_affine,), (_pack_symmetric,)
