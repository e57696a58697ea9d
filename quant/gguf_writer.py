"""Writes a GGUF file front to back: the header at once, then each tensor's bytes as they come, hashed on the way."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

from quant.gguf import DEFAULT_ALIGNMENT, MAGIC, TensorInfo, align
from quant.gguf_values import encode_string, encode_value
from quant.types import QuantType

VERSION = 3


@dataclass(frozen=True, slots=True)
class Written:
    """A finished file: `sha256` in hex, `size` in bytes."""

    sha256: str
    size: int


def layout(tensors: Sequence[tuple[str, tuple[int, ...], QuantType]]) -> tuple[TensorInfo, ...]:
    """Place tensors (name, shape in GGUF's order, type) end to end; WrongShape where a row is not made of blocks."""
    placed = []
    offset = 0
    for name, shape, type in tensors:
        nbytes = type.row_bytes(shape[0]) * prod(shape[1:])
        placed.append(TensorInfo(name, shape, type, offset, nbytes))
        offset += align(nbytes, DEFAULT_ALIGNMENT)
    return tuple(placed)


def encode_header(metadata: Mapping[str, Any], tensors: Sequence[TensorInfo]) -> bytes:
    """The bytes before the first tensor, padded. Metadata keeps its order; kinds as in `encode_value`."""
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    parts += [encode_string(key) + encode_value(value) for key, value in metadata.items()]
    for tensor in tensors:
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        parts += [encode_string(tensor.name), shape, struct.pack("<IQ", tensor.type.id, tensor.offset)]
    header = b"".join(parts)
    return header.ljust(align(len(header), DEFAULT_ALIGNMENT), b"\0")


class Writer:
    """Takes the tensors' bytes in the order of `tensors`, in pieces of any size that end where a tensor ends."""

    def __init__(self, file: BinaryIO, metadata: Mapping[str, Any], tensors: Sequence[TensorInfo]) -> None:
        self._file = file
        self._tensors = tensors
        self._hash = hashlib.sha256()
        self._size = 0
        self._current = 0
        self._filled = 0
        self._emit(encode_header(metadata, tensors))

    def append(self, data: memoryview) -> None:
        """Write the next bytes of the current tensor, and its padding when they complete it."""
        tensor = self._tensors[self._current]
        self._filled += data.nbytes
        if self._filled > tensor.nbytes:
            raise ValueError(f"`{tensor.name}` was given {self._filled} bytes and holds {tensor.nbytes}")
        self._emit(data)
        if self._filled == tensor.nbytes:
            self._emit(bytes(align(tensor.nbytes, DEFAULT_ALIGNMENT) - tensor.nbytes))
            self._current += 1
            self._filled = 0

    def finish(self) -> Written:
        """Digest and size of the whole file; every tensor must have been written."""
        if self._current != len(self._tensors):
            raise ValueError(f"`{self._tensors[self._current].name}` is not complete")
        return Written(self._hash.hexdigest(), self._size)

    def _emit(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._size += len(data) if isinstance(data, bytes) else data.nbytes
