"""Reads the header of a GGUF file: which entries and tensors it has. Trusts none of it.

Source of the format: `docs/gguf.md` of ggml. No weight is read, and only the standard library is needed, so the daemon
can read a file before any other process opens it. `quant/gguf/check.py` judges whether a header describes a model.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from quant.errors import UnknownLevel
from quant.gguf.values import Cursor, read_value
from quant.pointers import HEAD, check_substance
from quant.types import QuantType, Tensor

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_ENTRIES = 65_536
MAX_KEY = 65_536
MAX_NAME = 63
TOKEN_NORMAL, TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_USER, TOKEN_UNUSED, TOKEN_BYTE = range(1, 7)
# The fewest bytes that a metadata entry and a tensor's description can take.
_SMALLEST_ENTRY = 8 + 1 + 4 + 1
_SMALLEST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8


@dataclass(frozen=True, slots=True)
class TensorInfo(Tensor):
    """A tensor and the `offset` of its first byte, counted from `Header.data_offset`."""

    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """The header of the file `name`.

    `kinds` has the GGUF kind of each entry of `metadata`: `u32`, `str`, `arr[i32]`, …. The first tensor begins at byte
    `data_offset` of the file, every other one a multiple of `alignment` bytes behind it.
    """

    name: str
    version: int
    metadata: dict[str, Any]
    kinds: dict[str, str]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    alignment: int


def read_file(path: Path) -> Header:
    """The header of the file at `path`, read by `pread`; MalformedFile as `read_header`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        return read_header(lambda offset, count: os.pread(descriptor, count, offset), size, path.name)
    finally:
        os.close(descriptor)


def read_header(read: Callable[[int, int], bytes], size: int, name: str) -> Header:
    """Parse the header of a GGUF file of `size` bytes; `read(offset, count)` gives its bytes, `name` goes into errors.

    Raises MalformedFile, which names the broken rule:

    - Magic and version are known.
    - Counts and lengths fit the bytes that are left.
    - Keys and names are unique.
    - Types are known, and rows are made of whole blocks.
    - Tensors are aligned, and lie end to end inside the file.
    """
    cursor = Cursor(read, size, name)
    version, n_tensors, n_entries = _read_start(cursor)
    metadata, kinds = _read_metadata(cursor, n_entries)
    alignment = _alignment(cursor, metadata, kinds)
    cursor.need(n_tensors * _SMALLEST_TENSOR, f"the descriptions of {n_tensors} tensors")
    tensors = []
    offset = 0
    names: set[str] = set()
    for _ in range(n_tensors):
        tensor = _read_tensor(cursor, names)
        if tensor.offset != offset:
            raise cursor.fail(f"tensor `{tensor.name}` lies at offset {tensor.offset} and belongs at {offset}")
        offset += align(tensor.nbytes, alignment)
        tensors.append(tensor)
    data_offset = align(cursor.position, alignment)
    if tensors and data_offset + tensors[-1].offset + tensors[-1].nbytes > size:
        raise cursor.fail(
            f"its tensors need {data_offset + tensors[-1].offset + tensors[-1].nbytes} bytes, it has {size}"
        )
    return Header(name, version, metadata, kinds, tuple(tensors), data_offset, alignment)


def align(offset: int, alignment: int) -> int:
    """`offset` itself where it is a multiple of `alignment`, else the next multiple."""
    return -(-offset // alignment) * alignment


def _read_start(cursor: Cursor) -> tuple[int, int, int]:
    magic = cursor.take(4, "the magic number")
    if magic != MAGIC:
        check_substance(cursor.beginning(HEAD), cursor.name)
        raise cursor.fail(f"it begins with {magic.hex(' ')} instead of the word `GGUF`")
    version = cursor.u32("the version")
    if version not in (2, 3):
        order = " (big-endian)" if version & 0xFFFF == 0 and version else ""
        raise cursor.fail(f"its version is {version}{order}, and only 2 and 3 can be read")
    n_tensors, n_entries = cursor.u64("the number of tensors"), cursor.u64("the number of metadata entries")
    for count, what in ((n_tensors, "tensors"), (n_entries, "metadata entries")):
        if count > MAX_ENTRIES:
            raise cursor.fail(f"it claims {count} {what}, and at most {MAX_ENTRIES} are allowed")
    return version, n_tensors, n_entries


def _read_metadata(cursor: Cursor, count: int) -> tuple[dict[str, Any], dict[str, str]]:
    cursor.need(count * _SMALLEST_ENTRY, f"{count} metadata entries")
    metadata: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    for _ in range(count):
        key = cursor.string("a metadata key", MAX_KEY)
        if not key or key in metadata:
            raise cursor.fail(f"metadata key `{key}` appears twice" if key else "a metadata key is empty")
        kinds[key], metadata[key] = read_value(cursor, key)
    return metadata, kinds


def _alignment(cursor: Cursor, metadata: dict[str, Any], kinds: dict[str, str]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if kinds.get("general.alignment", "u32") != "u32" or not 1 <= value <= 65_536 or value & (value - 1):
        raise cursor.fail(f"the alignment {value} is not a power of two between 1 and 65536")
    return int(value)


def _read_tensor(cursor: Cursor, names: set[str]) -> TensorInfo:
    name = cursor.string("a tensor's name", MAX_NAME)
    if not name or name in names:
        raise cursor.fail(f"two tensors are named `{name}`" if name else "a tensor has no name")
    names.add(name)
    dimensions = cursor.u32(f"the dimensions of `{name}`")
    if not 1 <= dimensions <= 4:
        raise cursor.fail(f"tensor `{name}` has {dimensions} dimensions")
    shape = tuple(cursor.u64(f"the shape of `{name}`") for _ in range(dimensions))
    if min(shape) < 1 or prod(shape) > (1 << 63) - 1:
        raise cursor.fail(f"tensor `{name}` has the impossible shape {list(shape)}")
    number = cursor.u32(f"the type of `{name}`")
    try:
        type = QuantType.by_id(number)
    except UnknownLevel:
        raise cursor.fail(f"tensor `{name}` has the unknown type {number}") from None
    if shape[0] % type.block:
        raise cursor.fail(f"the {shape[0]} columns of tensor `{name}` are no multiple of a {type.name} block")
    return TensorInfo(name, shape, type, cursor.u64(f"the offset of `{name}`"))
