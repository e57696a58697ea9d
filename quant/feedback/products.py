"""Products of rows with a square matrix, in a fixed order of additions: the same bits on every CPU, for any threads.

Rows lie in tiles of 16, a row in each lane: vector `t·n + k` of a flat array holds column k of rows 16·t … 16·t + 15.
The products of numpy would be a little faster, but their order of additions depends on the CPU and on the threads.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quant.kernels.formats import Floats
from quant.kernels.vectors.compiler import kernel, part
from quant.kernels.vectors.simd import LANES, fma, item, load, splat, store

# Columns that are worked on together, a super-block.
PANEL = 256
# Rows of the matrix whose part in a panel stays in the L2 cache while all tiles meet it, and columns at a time.
_DEPTH, _WIDTH = 256, 8


@part
def _pack(matrix, row, depth, column, width, packed):
    """Copy a part of the matrix so that eight columns of a row lie together, and rows follow each other."""
    for q in range(width // _WIDTH):
        for k in range(depth):
            for i in range(_WIDTH):
                packed[(q * depth + k) * _WIDTH + i] = matrix[row + k, column + q * _WIDTH + i]


@part
def _multiply_tile(e, first, depth, packed, width, out, to):
    """Add the products of one tile with the packed part, eight columns at a time, to vectors `to` … of `out`."""
    for q in range(width // _WIDTH):
        at = to + q * _WIDTH
        a0, a1, a2, a3 = load(out, at), load(out, at + 1), load(out, at + 2), load(out, at + 3)
        a4, a5, a6, a7 = load(out, at + 4), load(out, at + 5), load(out, at + 6), load(out, at + 7)
        place = q * depth * _WIDTH
        for k in range(depth):
            v = load(e, first + k)
            a0 = fma(v, item(packed, place), a0)
            a1 = fma(v, item(packed, place + 1), a1)
            a2 = fma(v, item(packed, place + 2), a2)
            a3 = fma(v, item(packed, place + 3), a3)
            a4 = fma(v, item(packed, place + 4), a4)
            a5 = fma(v, item(packed, place + 5), a5)
            a6 = fma(v, item(packed, place + 6), a6)
            a7 = fma(v, item(packed, place + 7), a7)
            place += _WIDTH
        store(out, at, a0)
        store(out, at + 1, a1)
        store(out, at + 2, a2)
        store(out, at + 3, a3)
        store(out, at + 4, a4)
        store(out, at + 5, a5)
        store(out, at + 6, a6)
        store(out, at + 7, a7)


@part
def add_rows(vectors, base, rows, first, count, matrix, width, begin, end, out, to):
    """out[to + j] += Σ vectors[base + r]·matrix[r, j] over `count` rows r = rows[first] …, for j from `begin` to `end`.

    matrix: flat, `width` columns; begin and end are multiples of 8.
    """
    for j in range(begin, end, _WIDTH):
        at = to + j
        a0, a1, a2, a3 = load(out, at), load(out, at + 1), load(out, at + 2), load(out, at + 3)
        a4, a5, a6, a7 = load(out, at + 4), load(out, at + 5), load(out, at + 6), load(out, at + 7)
        for k in range(first, first + count):
            row = rows[k]
            v = load(vectors, base + row)
            place = row * width + j
            a0 = fma(v, item(matrix, place), a0)
            a1 = fma(v, item(matrix, place + 1), a1)
            a2 = fma(v, item(matrix, place + 2), a2)
            a3 = fma(v, item(matrix, place + 3), a3)
            a4 = fma(v, item(matrix, place + 4), a4)
            a5 = fma(v, item(matrix, place + 5), a5)
            a6 = fma(v, item(matrix, place + 6), a6)
            a7 = fma(v, item(matrix, place + 7), a7)
        store(out, at, a0)
        store(out, at + 1, a1)
        store(out, at + 2, a2)
        store(out, at + 3, a3)
        store(out, at + 4, a4)
        store(out, at + 5, a5)
        store(out, at + 6, a6)
        store(out, at + 7, a7)


@kernel("void(float32[::1], int64, int64, int64, float32[:, ::1], int64, int64, float32[::1])")
def multiply(e, n, first, last, matrix, column, width, out):
    """out[t, j] = Σ e[t, k]·matrix[k − first, column + j] over k from `first` to `last`, for all tiles of `e`.

    e: float32, `n` vectors for each tile. out: PANEL vectors for each tile, of which the first `width` are set; `width`
    is a multiple of 8.
    """
    packed = np.empty(_DEPTH * PANEL, np.float32)
    tiles = len(out) // (PANEL * LANES)
    for t in range(tiles):
        for j in range(width):
            store(out, t * PANEL + j, splat(0.0))
    for begin in range(first, last, _DEPTH):
        depth = min(_DEPTH, last - begin)
        _pack(matrix, begin - first, depth, column, width, packed)
        for t in range(tiles):
            _multiply_tile(e, t * n + begin, depth, packed, width, out, t * PANEL)


def tiled(rows: Floats) -> Floats:
    """Rows float32[r, n] as tiles, float32[⌈r / 16⌉, n, 16]; missing rows of the last tile are 0."""
    count, columns = rows.shape
    tiles = -(-count // LANES)
    padded: NDArray[np.float32] = np.zeros((tiles * LANES, columns), np.float32)
    padded[:count] = rows
    return np.ascontiguousarray(padded.reshape(tiles, LANES, columns).transpose(0, 2, 1))


def untiled(tiles: Floats) -> Floats:
    """The inverse of `tiled`, with the rows that were added: float32[tiles, n, 16] → float32[16·tiles, n]."""
    count, columns, _ = tiles.shape
    return np.ascontiguousarray(tiles.transpose(0, 2, 1)).reshape(count * LANES, columns)
