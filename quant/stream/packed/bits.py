"""Integers of a few bits, packed one behind the other: taken apart."""

from __future__ import annotations

import numpy as np


def unpack_dense(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first `count` codes of each row: any integers [rows, n], lowest bits first, → uint8[rows, count].

    Codes lie end to end, and may straddle words. `bits` is 1 to 8.
    """
    octets = np.ascontiguousarray(packed).view(np.uint8).reshape(len(packed), -1)
    if bits == 8:
        return octets[:, :count]
    from quant.kernels import unpacking

    # Rows end with a run of 8 codes, and the kernel for two codes in a byte takes 16 bytes at a time.
    length = -(-octets.shape[1] // bits) * bits
    if bits == 4 and octets.size % 16:
        length = -(-octets.shape[1] // 16) * 16
    octets = _padded(octets, 1, length)
    out = np.empty((len(octets), length * 8 // bits), np.uint8)
    if bits == 4:
        unpacking.nibbles(octets.reshape(-1), out.reshape(-1).view(np.uint16))
    else:
        unpacking.eights(octets.reshape(-1), bits, out.reshape(-1))
    return out[:, :count]


def looked_up(codes: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The entries of a table float32[n] that uint8[rows, columns] name: float32[rows, columns]."""
    from quant.kernels import unpacking

    out = np.empty(codes.shape, np.float32)
    unpacking.lookup(np.ascontiguousarray(codes).reshape(-1), table, out.reshape(-1))
    return out


def unpack_words(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """As `unpack_dense`, of 32-bit words that each hold 32 // `bits` codes and no part of another."""
    per = 32 // bits
    words = np.ascontiguousarray(packed).view(np.uint32)
    found = np.empty((*words.shape, per), np.uint8)
    for place in range(per):
        found[..., place] = words >> (place * bits) & ((1 << bits) - 1)
    return found.reshape(len(words), -1)[:, :count]


def unpack_columns(words: np.ndarray, bits: int, columns: int, first: int, last: int) -> np.ndarray:
    """Rows `first` to `last` of a matrix whose words lie along its columns: int32[words, rows] → uint8[rows, columns].

    Codes may straddle words, as in `unpack_dense`; `first` is a multiple of 16.
    """
    from quant.kernels import unpacking

    run = -(-columns // unpacking.RUN)
    words = _padded(_padded(words, 0, run * bits), 1, -(-words.shape[1] // 16) * 16)
    count = min(-(-(last - first) // 16) * 16, words.shape[1] - first)
    out = np.empty((count, run * unpacking.RUN), np.uint8)
    unpacking.columns(words.reshape(-1), words.shape[1], first, count, bits, out.reshape(-1))
    return out[: last - first, :columns]


def unpack_interleaved(words: np.ndarray, first: int, last: int) -> np.ndarray:
    """As `unpack_columns`, of words with four bits of eight rows each, in AWQ's order: int32[columns, rows / 8].

    `first` is a multiple of 128.
    """
    from quant.kernels import unpacking

    columns, together = len(words), unpacking.AWQ_ROWS
    words = _padded(_padded(words, 0, -(-columns // 16) * 16), 1, -(-words.shape[1] * 8 // together) * together // 8)
    count = -(-(last - first) // together) * together
    out = np.empty((count, len(words)), np.uint8)
    unpacking.interleaved(words.reshape(-1), words.shape[1] * 8, first, count, out.reshape(-1))
    return out[: last - first, :columns]


def _padded(array: np.ndarray, axis: int, length: int) -> np.ndarray:
    """The matrix with zeros behind it up to this length; few matrices need any."""
    missing = length - array.shape[axis]
    widths = [(0, missing if each == axis else 0) for each in range(2)]
    return np.pad(array, widths) if missing else np.ascontiguousarray(array)
