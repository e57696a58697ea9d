"""Integer codes of a source: taken apart from their words, and put into blocks as they are, or into numbers.

No search is made: the codes of a model that is quantized already are the levels of its blocks. Words are 32 bits,
little-endian, and hold their first code in their lowest bits.
"""

from __future__ import annotations

import numpy as np

from quant.kernels.vectors.compiler import kernel
from quant.kernels.vectors.simd import LANES, any_lane, lane_bits, load, splat_int, store, store_from, transpose

# Codes of a row that a kernel takes apart together: they fill whole words at any number of bits.
RUN = 32
# AWQ: the row that each of the eight codes of a word belongs to, lowest bits first.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
# Rows of AWQ that a kernel takes apart together: one vector of words.
AWQ_ROWS = 8 * LANES


@kernel("void(Array(uint8, 1, 'C', readonly=True), uint16[::1])")
def nibbles(packed, out):
    """Codes of four bits, two in a byte: uint8[n] → pairs of codes in uint16[n]; n is a multiple of 16."""
    for i in range(out.size // LANES):
        both = load(packed, i)
        store(out, i, both & 15 | (both & 240) << 4)


@kernel("void(Array(uint8, 1, 'C', readonly=True), int64, uint8[::1])")
def eights(packed, bits, out):
    """Codes that may straddle bytes, eight from `bits` bytes: uint8[n * bits] → uint8[n * 8]."""
    mask = np.uint64((1 << bits) - 1)
    width = np.uint64(bits)
    for run in range(out.size // 8):
        word = np.uint64(0)
        for byte in range(bits):
            word |= np.uint64(packed[run * bits + byte]) << np.uint64(8 * byte)
        for place in range(8):
            out[run * 8 + place] = np.uint8(word & mask)
            word >>= width


@kernel("void(Array(int32, 1, 'C', readonly=True), int64, int64, int64, int64, uint8[::1])")
def columns(words, rows, first, count, bits, out):
    """GPTQ: words [columns * bits / 32, rows], of which rows `first` to `first + count` → uint8[count, columns].

    `rows`, `first` and `count` are multiples of 16, and columns of 32.
    """
    tile = np.empty(RUN * LANES, np.uint8)
    width = out.size // count
    mask = (1 << bits) - 1
    for run in range(width // RUN):
        for t in range(count // LANES):
            at = (run * bits * rows + first) // LANES + t
            for place in range(RUN):
                word, shift = place * bits >> 5, place * bits & 31
                code = load(words, at + word * (rows // LANES)) >> shift
                if shift + bits > 32:
                    code = code | load(words, at + (word + 1) * (rows // LANES)) << (32 - shift)
                store(tile, place, code & mask)
            for half in range(0, RUN, LANES):
                transpose(tile, half * LANES, LANES, out, t * LANES * width + run * RUN + half, width)


@kernel("void(Array(int32, 1, 'C', readonly=True), int64, int64, int64, uint8[::1])")
def interleaved(words, rows, first, count, out):
    """AWQ: words [columns, rows / 8], of which rows `first` to `first + count` → uint8[count, columns].

    `rows`, `first` and `count` are multiples of 128, and columns of 16.
    """
    tile = np.empty(8 * LANES * LANES, np.uint8)
    width = out.size // count
    for left in range(0, width, LANES):
        for top in range(0, count, AWQ_ROWS):
            for column in range(LANES):
                word = load(words, ((left + column) * (rows // 8) + (first + top) // 8) // LANES)
                for place in range(8):
                    store(tile, place * LANES + column, word >> 4 * place & 15)
            for place in range(8):
                to = (top + AWQ_ORDER[place]) * width + left
                transpose(tile, place * LANES * LANES, LANES, out, to, 8 * width)


@kernel(
    "boolean(Array(uint8, 1, 'C', readonly=True), uint16[::1], uint16[::1], int32[::1], int64, int64, uint8[:, ::1])"
)
def fill(levels, d, low, shift, bits, each, out):
    """Fill blocks of 32 with levels uint8[n * 32]; `each` blocks in a row share d, `low` and `shift`.

    d, low: the bits of float16; `low`, the minimum, is empty for a type that has none. shift: added to every level.
    bits: the bits of a level in the block, 4, 5 or 8; levels of eight bits become signed bytes, 128 becomes 0.
    False where a level is out of its range.
    """
    most = (1 << bits) - 1
    begin = 4 if low.size > 0 else 2
    wrong = splat_int(0)
    for group in range(d.size):
        for b in range(group * each, (group + 1) * each):
            to = out[b]
            to[0], to[1] = d[group] & 255, d[group] >> 8
            if low.size > 0:
                to[2], to[3] = low[group] & 255, low[group] >> 8
            first = load(levels, b * 2) + shift[group]
            second = load(levels, b * 2 + 1) + shift[group]
            wrong = wrong | first | second
            if bits == 8:
                store_from(to, begin, first ^ 128)
                store_from(to, begin + LANES, second ^ 128)
                continue
            at = begin
            if bits == 5:
                fifths = lane_bits((first & 16) != 0) | lane_bits((second & 16) != 0) << LANES
                for byte in range(4):
                    to[begin + byte] = fifths >> byte * 8 & 255
                at = begin + 4
            store_from(to, at, first & 15 | (second & 15) << 4)
    return not any_lane((wrong & ~most) != 0)


@kernel(
    "void(Array(uint8, 1, 'C', readonly=True), Array(float32, 1, 'C', readonly=True), int32[::1],"
    "Array(float32, 1, 'C', readonly=True), float32[::1])"
)
def numbers(levels, scales, shift, bias, out):
    """(level + shift) * scale + bias for groups of equal length; `bias` is empty where there is none."""
    size = out.size // scales.size
    for group in range(scales.size):
        scale, add = scales[group], shift[group]
        for i in range(group * size, (group + 1) * size):
            value = np.float32(np.int32(levels[i]) + add) * scale
            out[i] = value + bias[group] if bias.size > 0 else value


@kernel("void(Array(uint8, 1, 'C', readonly=True), Array(float32, 1, 'C', readonly=True), float32[::1])")
def lookup(codes, table, out):
    """The number that each code stands for in a table, float32[16] or float32[256], which no code exceeds."""
    for i in range(out.size):
        out[i] = table[codes[i]]
