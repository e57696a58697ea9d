"""Reads the header of a GGUF file and trusts none of it.

`read_header` checks the format itself, `check_model` whether the header describes a model that may be handed to
llama.cpp, which aborts, or worse, on some that do not. Neither reads a weight, and both need only the standard library,
so the daemon can admit a file before any other process opens it. Chat templates are only measured here; they are
parsed in the sandbox of the worker.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from quant.errors import MalformedFile, UnknownLevel, UnsupportedModel
from quant.gguf.architectures import KNOWN, REQUIRED
from quant.gguf.values import Cursor, read_value
from quant.types import QuantType, Tensor

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_ENTRIES = 65_536
MAX_KEY = 65_536
MAX_NAME = 63
MAX_BLOCKS = 512
MAX_TEMPLATE = 1 << 20
TOKEN_NORMAL, TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_USER, TOKEN_UNUSED, TOKEN_BYTE = range(1, 7)
# Largest believable values; a model that needs more is refused rather than multiplied out.
_SIZES = {
    "context_length": 1 << 30,
    "embedding_length": 1 << 20,
    "feed_forward_length": 1 << 22,
    "attention.head_count": 1 << 14,
    "attention.head_count_kv": 1 << 14,
    "attention.key_length": 1 << 14,
    "attention.value_length": 1 << 14,
    "rope.dimension_count": 1 << 14,
    "vocab_size": 1 << 24,
}
_NEEDED = ("context_length", "embedding_length", "feed_forward_length", "attention.head_count")
_VOCABULARY = {"tokens": "arr[str]", "scores": "arr[f32]", "token_type": "arr[i32]", "merges": "arr[str]"}
# The fewest bytes that a metadata entry and a tensor's description can take.
_SMALLEST_ENTRY = 8 + 1 + 4 + 1
_SMALLEST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8


@dataclass(frozen=True, slots=True)
class TensorInfo(Tensor):
    """A tensor and the `offset` of its first byte from the start of the file's data."""

    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says about itself. `kinds` has the GGUF kind of each entry of `metadata`."""

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

    Raises MalformedFile with the broken rule: magic and version, counts and lengths against the bytes that are left,
    unique keys and names, known types, whole blocks, alignment, tensors that lie end to end inside the file.
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
    """The next multiple of `alignment`."""
    return -(-offset // alignment) * alignment


def _read_start(cursor: Cursor) -> tuple[int, int, int]:
    magic = cursor.take(4, "the magic number")
    if magic != MAGIC:
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
    if kinds.get("general.alignment", "u32") != "u32" or not 8 <= value <= 65_536 or value & (value - 1):
        raise cursor.fail(f"the alignment {value} is not a power of two between 8 and 65536")
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


def check_model(header: Header) -> None:
    """Raise unless the header describes a model that llama.cpp can be given.

    MalformedFile for sizes that cannot be, a vocabulary whose parts disagree or tensors that are missing;
    UnsupportedModel for an architecture that llama.cpp does not know.
    """
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise _refuse(header, "`general.architecture` is missing")
    if architecture not in KNOWN:
        raise UnsupportedModel(f"`{header.name}` has the unknown architecture `{architecture[:64]}`")
    if not header.tensors:
        raise _refuse(header, "it has no tensors")
    _check_sizes(header, architecture)
    _check_vocabulary(header)
    _check_tensors(header, architecture)


def _refuse(header: Header, rule: str) -> MalformedFile:
    return MalformedFile(f"`{header.name}` is not a usable model: {rule}")


def _check_sizes(header: Header, architecture: str) -> None:
    blocks: Any = header.metadata.get(f"{architecture}.block_count")
    if not _is_count(blocks, MAX_BLOCKS):
        raise _refuse(header, f"`{architecture}.block_count` is {blocks}, not between 1 and {MAX_BLOCKS}")
    for suffix, limit in _SIZES.items():
        key = f"{architecture}.{suffix}"
        value = header.metadata.get(key)
        if value is None and not (suffix in _NEEDED and architecture in REQUIRED):
            continue
        values = value if isinstance(value, list) else [value]
        if isinstance(value, list) and len(value) < blocks:
            raise _refuse(header, f"`{key}` has {len(value)} entries for {blocks} blocks")
        least = 1 if architecture in REQUIRED else 0
        if not all(_is_count(entry, limit, least) for entry in values):
            raise _refuse(header, f"`{key}` is not between {least} and {limit}")


def _is_count(value: Any, limit: int, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= limit


def _check_vocabulary(header: Header) -> None:
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        if header.metadata.get("tokenizer.ggml.model") in (None, "none", "no_vocab"):
            return
        raise _refuse(header, "its vocabulary is missing")
    for suffix, kind in _VOCABULARY.items():
        key = f"tokenizer.ggml.{suffix}"
        if header.kinds.get(key, kind) != kind:
            raise _refuse(header, f"`{key}` is {header.kinds[key]} and must be {kind}")
        if suffix != "merges" and len(header.metadata.get(key, tokens)) != len(tokens):
            raise _refuse(header, f"`{key}` has {len(header.metadata[key])} entries for {len(tokens)} tokens")
    if not tokens or len(set(tokens)) != len(tokens):
        raise _refuse(header, "its tokens are not all different" if tokens else "its vocabulary is empty")
    for key, value in header.metadata.items():
        if key.startswith("tokenizer.ggml.") and key.endswith("_token_id"):
            # Some converters write -1, or the same in 32 bits, for "none".
            if isinstance(value, int) and (0 <= value < len(tokens) or value in (-1, 0xFFFFFFFF)):
                continue
            raise _refuse(header, f"`{key}` is {value}, outside the {len(tokens)} tokens")
    _check_byte_tokens(header, tokens)
    for key, value in header.metadata.items():
        if key.startswith("tokenizer.chat_template") and isinstance(value, str) and len(value) > MAX_TEMPLATE:
            raise _refuse(header, f"`{key}` is longer than 1 MiB")


def _check_byte_tokens(header: Header, tokens: list[str]) -> None:
    if header.metadata.get("tokenizer.ggml.model") not in ("llama", "plamo2"):
        return
    for token, type in zip(tokens, header.metadata.get("tokenizer.ggml.token_type", ()), strict=False):
        if type == TOKEN_BYTE and not re.fullmatch("<0x[0-9A-F]{2}>", token):
            raise _refuse(header, f"token `{token[:32]}` is no byte, and is marked as one")


def _check_tensors(header: Header, architecture: str) -> None:
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    blocks = header.metadata[f"{architecture}.block_count"]
    wanted = [
        name.format(block) for name in REQUIRED.get(architecture, ()) for block in range(blocks if "{}" in name else 1)
    ]
    missing = [name for name in wanted if name not in shapes]
    if missing:
        raise _refuse(header, f"{len(missing)} tensors are missing, the first is `{missing[0]}`")
    embedding = shapes.get("token_embd.weight")
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    width = header.metadata.get(f"{architecture}.embedding_length")
    if embedding and tokens and embedding != (width, len(tokens)):
        raise _refuse(header, f"`token_embd.weight` is {list(embedding)} for {len(tokens)} tokens of width {width}")
