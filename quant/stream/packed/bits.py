"""Integers of a few bits, packed one behind the other: taken apart."""

from __future__ import annotations

import numpy as np

_STEP = 1 << 18  # codes that are taken apart at a time where they straddle bytes: each takes a byte for every bit


def unpack_dense(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first `count` codes of each row: any integers [rows, n], lowest bits first, → uint8[rows, count].

    Codes lie end to end, and may straddle words. `bits` is 1 to 8.
    """
    rows = len(packed)
    octets = np.ascontiguousarray(packed).view(np.uint8).reshape(rows, -1)
    if bits == 8:
        return octets[:, :count]
    if bits in (1, 2, 4):
        per = 8 // bits
        found = np.empty((rows, octets.shape[1], per), np.uint8)
        for place in range(per):
            found[:, :, place] = octets >> (place * bits) & ((1 << bits) - 1)
        return found.reshape(rows, -1)[:, :count]
    weights = (1 << np.arange(bits)).astype(np.uint8)
    out = np.empty((rows, count), np.uint8)
    step = max(1, _STEP // count)
    for first in range(0, rows, step):
        some = octets[first : first + step]
        flat = np.unpackbits(some, axis=1, bitorder="little")[:, : count * bits]
        out[first : first + step] = flat.reshape(len(some), count, bits) @ weights
    return out


def unpack_words(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """As `unpack_dense`, of 32-bit words that each hold 32 // `bits` codes and no part of another."""
    per = 32 // bits
    words = np.ascontiguousarray(packed).view(np.uint32)
    found = np.empty((*words.shape, per), np.uint8)
    for place in range(per):
        found[..., place] = words >> (place * bits) & ((1 << bits) - 1)
    return found.reshape(len(words), -1)[:, :count]
