"""Safetensors files of tensors that are taken back: which tensor lies in which file, headers, and the index of files.

Source of the format: the README of huggingface/safetensors; files and index are named as `transformers` saves them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from quant.convert.returning.plan import Return, ReturnedTensor
from quant.convert.returning.values import Read, encoded, is_kept_whole
from quant.gguf.header import Header
from quant.safetensors import DTYPES, INDEX, SINGLE

# Bytes of a file; a tensor that is longer has one for itself.
LONGEST = 5_000_000_000


@dataclass(frozen=True)
class Stored:
    """A tensor and the type in which it is written."""

    tensor: ReturnedTensor
    dtype: str

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.tensor.elements * DTYPES[self.dtype]


@dataclass(frozen=True)
class Shard:
    """A safetensors file: its name and its tensors in order."""

    name: str
    tensors: tuple[Stored, ...]

    @property
    def header(self) -> bytes:
        """The bytes before the weights."""
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for each in self.tensors:
            place = [offset, offset + each.size]
            entries[each.tensor.name] = {
                "dtype": each.dtype,
                "shape": list(each.tensor.shape),
                "data_offsets": place,
            }
            offset += each.size
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.header) + sum(each.size for each in self.tensors)

    def pieces(self, header: Header, read: Read) -> Iterator[bytes]:
        """All bytes of the file, in order; `header` and `read` are the GGUF file's. Raises BadValues."""
        yield self.header
        for each in self.tensors:
            yield from encoded(each.tensor, each.dtype, header, read)


def shards_of(returned: Return, dtype: str, header: Header, read: Read, longest: int = LONGEST) -> list[Shard]:
    """The files of a model whose weights are written as `dtype`; vectors are read, to keep whole what it would change.

    Raises BadValues.
    """
    groups: list[list[Stored]] = [[]]
    size = 0
    for tensor in returned.tensors:
        stored = Stored(tensor, "F32" if is_kept_whole(tensor, dtype, header, read) else dtype)
        if size and size + stored.size > longest:
            groups.append([])
            size = 0
        groups[-1].append(stored)
        size += stored.size
    if len(groups) == 1:
        return [Shard(SINGLE, tuple(groups[0]))]
    names = [f"model-{number:05}-of-{len(groups):05}.safetensors" for number in range(1, len(groups) + 1)]
    return [Shard(name, tuple(group)) for name, group in zip(names, groups, strict=True)]


def index_of(shards: list[Shard]) -> dict[str, bytes]:
    """The index of several files, by its name; nothing for one file."""
    if len(shards) == 1:
        return {}
    total = sum(each.size for shard in shards for each in shard.tensors)
    places = {each.tensor.name: shard.name for shard in shards for each in shard.tensors}
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2)
    return {INDEX: text.encode() + b"\n"}
