"""The values of tensors that are taken back: read from the GGUF file, dequantized, put where they were, rounded.

A tensor comes in pieces of a few megabytes, or, where several tensors of the file lie in one of the source, in parts of
one matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

import quant
from quant.convert.returning.plan import ReturnedPiece, ReturnedTensor
from quant.convert.transforms import widen
from quant.errors import BadValues
from quant.gguf.header import Header

# Bytes of float32 at a time.
SLAB = 8 << 20
_LARGEST = {"F16": 65504.0, "BF16": 3.3895314e38, "F32": np.inf}
# How far rounding may move a vector's values before they are kept whole: sums with 1 are rounded by less.
_ROUNDED = 1e-6

Read = Callable[[int, int], bytes]
"""The bytes of the GGUF file: (offset, count)."""


def values(tensor: ReturnedTensor, header: Header, read: Read) -> Iterator[np.ndarray]:
    """The tensor's values in order, float32[n] in pieces. Raises BadValues for NaN and infinity."""
    if tensor.blank:
        yield np.zeros(tensor.blank * (tensor.elements // tensor.shape[0]), np.float32)
    if tensor.told is not None:
        yield np.array([tensor.told], np.float32)
    apart = any(piece.transform and (not piece.transform.rows or len(tensor.pieces) > 1) for piece in tensor.pieces)
    for matrix in range(tensor.matrices):
        pieces = [_share(piece, matrix, tensor.matrices) for piece in tensor.pieces]
        if apart:
            yield _joined(tensor, pieces, header, read)
            continue
        for piece in pieces:
            for x in _slabs(piece, header, read):
                if piece.transform is None:
                    yield x.reshape(-1)
                    continue
                out = np.empty_like(x)
                piece.transform.undo(x, out)
                yield out.reshape(-1)


def _share(piece: ReturnedPiece, number: int, count: int) -> ReturnedPiece:
    rows = piece.rows // count
    return piece._replace(first=piece.first + number * rows, rows=rows)


def _joined(tensor: ReturnedTensor, pieces: list[ReturnedPiece], header: Header, read: Read) -> np.ndarray:
    """One matrix, each piece's values where its transform took them from."""
    whole = np.full(tensor.elements // tensor.matrices, np.nan, np.float32)
    for piece in pieces:
        x = np.concatenate(list(_slabs(piece, header, read)))
        assert piece.transform
        piece.transform.undo(x, whole.reshape(1, -1) if not piece.transform.rows else whole.reshape(-1, x.shape[-1]))
    if np.isnan(whole).any():
        raise BadValues(f"not all values of `{tensor.name}` are in the file")
    return whole


def _slabs(piece: ReturnedPiece, header: Header, read: Read) -> Iterator[np.ndarray]:
    """The rows of a piece, float32[n, columns], as many at a time as its transform needs together."""
    tensor = piece.tensor
    unit = max(1, piece.transform.rows if piece.transform else 1)
    vector = len(tensor.shape) == 1 and piece.transform is not None
    step = max(1, SLAB // (4 * tensor.columns * unit)) * unit
    row_bytes = tensor.type.row_bytes(tensor.columns)
    scale, height = None, tensor.shape[1] if len(tensor.shape) > 1 else 1
    if piece.scale:
        scale = np.frombuffer(read(header.data_offset + piece.scale.offset, piece.scale.nbytes), "<f4")
    for first in range(piece.first, piece.first + piece.rows, step):
        count = min(step, piece.first + piece.rows - first)
        data = read(header.data_offset + tensor.offset + first * row_bytes, count * row_bytes)
        blocks = np.frombuffer(data, np.uint8).reshape(count, row_bytes)
        x = quant.dequantize(blocks, tensor.type, tensor.columns)
        if scale is not None:
            x *= scale[np.arange(first, first + count) // height, None]
        if not np.isfinite(x).all():
            raise BadValues(f"tensor `{tensor.name}` holds NaN or infinity", "`lm verify` tells whether it is damaged")
        yield x.reshape(-1, 1) if vector else x


def is_kept_whole(tensor: ReturnedTensor, dtype: str, header: Header, read: Read) -> bool:
    """Whether a vector's values stay F32, because `dtype` would change them: preferences, decay rates, some norms."""
    if dtype == "F32" or len(tensor.shape) > 1:
        return False
    x = np.concatenate([np.zeros(0, np.float32), *values(tensor, header, read)])
    with np.errstate(over="ignore"):
        rounded = widened(narrowed(x, dtype), dtype)
    return bool((np.abs(rounded - x) > _ROUNDED * np.maximum(1, np.abs(x))).any())


def narrowed(x: np.ndarray, dtype: str) -> np.ndarray:
    """float32[n] rounded to `dtype` (F32, F16 or BF16), half to even, as bytes."""
    if dtype == "F32":
        return x.astype("<f4", copy=False).view(np.uint8)
    if dtype == "F16":
        return x.astype("<f2").view(np.uint8)
    bits: np.ndarray = x.astype("<f4", copy=False).view("<u4")
    rounded: np.ndarray = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    return rounded.astype("<u2").view(np.uint8)


def widened(data: np.ndarray, dtype: str) -> np.ndarray:
    """The inverse of `narrowed`, up to the rounding."""
    found: np.ndarray = data.view({"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[dtype])
    return widen(found)


def encoded(tensor: ReturnedTensor, dtype: str, header: Header, read: Read) -> Iterator[bytes]:
    """The tensor's bytes as `dtype`, in pieces. Raises BadValues for numbers that it does not hold."""
    for x in values(tensor, header, read):
        largest, limit = float(np.abs(x).max(initial=0)), _LARGEST[dtype]
        if largest > limit:
            raise BadValues(
                f"tensor `{tensor.name}` holds a weight of {largest:g}, and {dtype} ends at {limit:g}",
                "take `--type BF16`, which holds it",
            )
        yield narrowed(x, dtype).tobytes()
