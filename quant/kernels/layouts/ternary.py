"""How TQ1_0, TQ2_0, Q2_0 and Q1_0 lie in memory, and what the parts stand for.

Source of the layouts: `block_tq1_0`, `block_tq2_0`, `block_q2_0`, `block_q1_0` in llama.cpp's ggml-common.h and
`dequantize_row_tq1_0` in ggml-quants.c.
"""

from __future__ import annotations

import numpy as np

from quant.kernels.formats import Bytes, Floats, Parts, halves, put_half
from quant.kernels.layouts.whole import Layout
from quant.kernels.vectors.compiler import kernel

# TQ1_0 has three runs of bytes: (first element, first byte, number of bytes, elements in a byte). The elements that
# share a byte are as far apart as the run has bytes.
_TRIT_RUNS = ((0, 0, 32, 5), (160, 32, 16, 5), (240, 48, 4, 4))
_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)


@kernel("void(uint8[:, ::1], uint8[:, ::1])")
def _pack_trits(levels, out):
    """Five levels of 0 … 2 to a byte, as the fraction 0.abcde in base 3, in units of 1/256 and rounded up."""
    for b in range(len(levels)):
        for first, start, width, count in _TRIT_RUNS:
            for i in range(width):
                number = 0
                for n in range(5):
                    number *= 3
                    if n < count:
                        number += levels[b, first + n * width + i]
                out[b, start + i] = (number * 256 + 242) // 243


@kernel("void(uint8[:, ::1], uint8[:, ::1], int64, int64)")
def _pack_crumbs(levels, out, start, gap):
    """Four levels of 0 … 3 to a byte, `gap` elements apart."""
    for b in range(len(levels)):
        for run in range(levels.shape[1] // (4 * gap)):
            q = levels[b, run * 4 * gap :]
            for i in range(gap):
                out[b, start + run * gap + i] = q[i] | q[gap + i] << 2 | q[2 * gap + i] << 4 | q[3 * gap + i] << 6


def _pack_tq1(parts: Parts, out: Bytes) -> None:
    """54 bytes: 240 elements in 48 bytes, 16 in 4, d."""
    _pack_trits(parts.levels, out)
    put_half(out, 52, parts.d)


def _unpack_tq1(blocks: Bytes) -> Parts:
    runs = []
    for _, start, width, count in _TRIT_RUNS:
        # A byte is the fraction 0.abcde in base 3. Times 9 it is ab.cde; uint8 drops ab, and the next digit is c.
        shifted = blocks[:, None, start : start + width] * _POWERS[:count, None]
        runs.append((shifted.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(len(blocks), -1))
    return Parts(np.concatenate(runs, axis=1), halves(blocks, 52))


def _pack_tq2(parts: Parts, out: Bytes) -> None:
    """66 bytes: 64 × four levels, d."""
    _pack_crumbs(parts.levels, out, 0, 32)
    put_half(out, 64, parts.d)


def _pack_q2(parts: Parts, out: Bytes) -> None:
    """18 bytes: d, 16 × four levels."""
    _pack_crumbs(parts.levels, out, 2, 1)
    put_half(out, 0, parts.d)


def _crumbs(packed: Bytes, gap: int) -> Bytes:
    rows = packed.reshape(len(packed), -1, 1, gap) >> np.array([0, 2, 4, 6], np.uint8).reshape(4, 1)
    return (rows & np.uint8(3)).reshape(len(packed), -1)


def _unpack_tq2(blocks: Bytes) -> Parts:
    return Parts(_crumbs(blocks[:, :64], 32), halves(blocks, 64))


def _unpack_q2(blocks: Bytes) -> Parts:
    return Parts(_crumbs(blocks[:, 2:], 1), halves(blocks, 0))


def _restore(parts: Parts) -> Floats:
    """(level − 1)·d."""
    return (parts.levels.view(np.int8) - np.int8(1)) * parts.d.astype(np.float32)[:, None]


def _pack_q1(parts: Parts, out: Bytes) -> None:
    """18 bytes: d, one bit for each element."""
    put_half(out, 0, parts.d)
    out[:, 2:] = np.packbits(parts.levels, axis=1, bitorder="little")


def _unpack_q1(blocks: Bytes) -> Parts:
    return Parts(np.unpackbits(blocks[:, 2:], axis=1, bitorder="little"), halves(blocks, 0))


def _restore_q1(parts: Parts) -> Floats:
    """d where the level is 1, −d where it is 0."""
    d = parts.d.astype(np.float32)[:, None]
    return np.where(parts.levels == 1, d, -d)


TQ1_0 = Layout(_pack_tq1, _unpack_tq1, _restore)
TQ2_0 = Layout(_pack_tq2, _unpack_tq2, _restore)
Q2_0 = Layout(_pack_q2, _unpack_q2, _restore)
Q1_0 = Layout(_pack_q1, _unpack_q1, _restore_q1)

TRITS, CRUMBS = (_pack_trits,), (_pack_crumbs,)
