"""Writes a GGUF file front to back: the header at once, then each tensor's bytes as they come."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from quant.gguf.header import DEFAULT_ALIGNMENT, MAGIC, TensorInfo, align
from quant.gguf.values import encode_string, encode_value
from quant.types import Tensor

VERSION = 3


class Sink(Protocol):
    """A file or another output that grows at its end."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Append all of `data`."""


def layout(tensors: Iterable[Tensor]) -> tuple[TensorInfo, ...]:
    """The tensors with their offsets: end to end, each at a multiple of 32 bytes, as `encode_header` wants them.

    Raises WrongShape when a row is not made of whole blocks.
    """
    placed = []
    offset = 0
    for tensor in tensors:
        placed.append(TensorInfo(tensor.name, tensor.shape, tensor.type, offset))
        offset += align(tensor.nbytes, DEFAULT_ALIGNMENT)
    return tuple(placed)


def encode_header(
    metadata: Mapping[str, Any], tensors: Sequence[TensorInfo], kinds: Mapping[str, str] | None = None
) -> bytes:
    """The bytes of a file before its first tensor, padding included; metadata keeps its order.

    `kinds` has the GGUF kind of entries for which `encode_value` would choose another.
    """
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    known = kinds or {}
    parts += [encode_string(key) + encode_value(value, known.get(key, "")) for key, value in metadata.items()]
    for tensor in tensors:
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        parts += [encode_string(tensor.name), shape, struct.pack("<IQ", tensor.type.id, tensor.offset)]
    header = b"".join(parts)
    return header.ljust(align(len(header), DEFAULT_ALIGNMENT), b"\0")


class Writer:
    """Writes the bytes of the tensors, in the order of `tensors`, and the padding between them.

    The bytes come in pieces of any size, but no piece has bytes of two tensors.
    """

    def __init__(self, file: Sink, tensors: Sequence[TensorInfo], current: int = 0, filled: int = 0) -> None:
        """`file` holds the header already, tensors 0 to `current` - 1, and `filled` bytes of tensor `current`."""
        self._file = file
        self._tensors = tensors
        self._current = current
        self._filled = filled

    def append(self, data: memoryview) -> None:
        """Write the next bytes of the current tensor, and its padding when it is complete.

        Raises ValueError for more bytes than the tensor has.
        """
        tensor = self._tensors[self._current]
        self._filled += data.nbytes
        if self._filled > tensor.nbytes:
            raise ValueError(f"`{tensor.name}` was given {self._filled} bytes and holds {tensor.nbytes}")
        self._file.write(data)
        if self._filled == tensor.nbytes:
            self._file.write(bytes(align(tensor.nbytes, DEFAULT_ALIGNMENT) - tensor.nbytes))
            self._current += 1
            self._filled = 0

    def finish(self) -> None:
        """Raise ValueError unless every tensor is complete."""
        if self._current != len(self._tensors):
            raise ValueError(f"`{self._tensors[self._current].name}` is not complete")
