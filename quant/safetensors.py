"""Reads the headers of safetensors files and trusts none of them.

Source of the format: the README of huggingface/safetensors. A file has eight bytes with the length of the header, the
header as JSON, then the tensors end to end without holes. Weights are never read here: an `Entry` tells the streaming
pass where they lie.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from quant.errors import MalformedFile, UnsupportedModel
from quant.plan import Files, Packing
from quant.pointers import HEAD, check_substance

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MIXED = "the files may be of different versions of the model; fetch all of one"
MAX_HEADER = 100 << 20
MAX_INDEX = 64 << 20
MAX_DIMENSIONS = 8
# Bytes of an element.
DTYPES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a safetensors file: `size` bytes at `offset` from the start of file `shard`; `shape` is rows first.

    Quantized weights have a `packing` and companions, such as scales (`quant/convert/prequantized/`). Weights whose
    rows lie in several places have `pieces`, in the order of the rows, each with its own companions. Where other
    weights are made of the same bytes, `size` is their share.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    offset: int
    size: int
    packing: Packing | None = None
    companions: tuple[Entry, ...] = ()
    pieces: tuple[Entry, ...] = ()


def read_model(files: Files) -> tuple[Entry, ...]:
    """All tensors of a model, in file order: file after file, front to back.

    Raises MalformedFile for a header or an index that breaks the format or names a missing file or tensor,
    UnsupportedModel where there are no safetensors files at all.
    """
    names = set(files.names())
    if INDEX in names:
        shard_of = _read_index(files, names)
        shards = sorted(set(shard_of.values()))
    elif SINGLE in names:
        shard_of, shards = {}, [SINGLE]
    else:
        raise _no_weights(names)
    found: dict[str, Entry] = {}
    for shard in shards:
        for entry in read_header(lambda o, n, s=shard: files.read(s, o, n), files.size(shard), shard):  # type: ignore[misc]
            if entry.name in found:
                reason = f"tensor `{entry.name}` is in `{found[entry.name].shard}` and in `{shard}`"
                raise MalformedFile(reason, _MIXED)
            found[entry.name] = entry
    for name, shard in shard_of.items():
        if name not in found or found[name].shard != shard:
            raise MalformedFile(f"`{INDEX}` says that `{name}` is in `{shard}`, and it is not", _MIXED)
    return tuple(found.values())


def read_header(read: Callable[[int, int], bytes], size: int, name: str) -> tuple[Entry, ...]:
    """The tensors of one file of `size` bytes, front to back; `read(offset, count)` gives its bytes, `name` names it.

    Raises MalformedFile unless the tensors cover the file exactly, without holes or overlap, and the bytes of each
    agree with its shape and type.
    """
    check_substance(read(0, min(size, HEAD)) if size else b"", name)
    if size < 8:
        raise _broken(name, f"it has only {size} bytes")
    length = int.from_bytes(read(0, 8), "little")
    if length > min(MAX_HEADER, size - 8):
        raise _broken(
            name, f"its header claims {length} bytes, and the file has {size} (a header may have {MAX_HEADER})"
        )
    raw = read(8, length)
    if not raw.startswith(b"{"):
        raise _broken(name, "its header is not a JSON object")
    header = load_json(raw, name)
    header.pop("__metadata__", None)
    begin = 8 + length
    entries = [_entry(name, begin, key, value) for key, value in header.items()]
    entries.sort(key=lambda entry: (entry.offset, entry.size))
    position = begin
    for entry in entries:
        if entry.offset != position:
            kind = "overlaps the one before it" if entry.offset < position else "leaves a hole before it"
            raise _broken(name, f"tensor `{entry.name}` {kind}")
        position += entry.size
    if position != size:
        raise _broken(name, f"its tensors end at byte {position}, and it has {size}")
    return tuple(entries)


def load_json(raw: bytes, name: str) -> dict[str, Any]:
    """The JSON object in `raw`. Raises MalformedFile, which names file `name`, for other JSON or a repeated key."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            raise ValueError("a key appears twice")
        return value

    try:
        value = json.loads(raw.decode(), object_pairs_hook=unique)
        if b"\\u" in raw:
            # `"\ud800"` is valid JSON and half a character: encoding it raises, here instead of somewhere later.
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError:
        raise MalformedFile(f"`{name}` is not valid JSON: it is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise MalformedFile(f"`{name}` is not valid JSON: {reason}") from None
    if not isinstance(value, dict):
        raise MalformedFile(f"`{name}` does not hold a JSON object")
    return value


def _broken(name: str, rule: str) -> MalformedFile:
    hint = "the file may be incomplete; download it again"
    return MalformedFile(f"`{name}` is not a valid safetensors file: {rule}", hint=hint)


def _entry(shard: str, begin: int, name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _broken(shard, f"tensor `{name}` is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _broken(shard, f"tensor `{name}` has the unknown type {json.dumps(dtype)[:40]}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise _broken(shard, f"tensor `{name}` has the impossible shape {json.dumps(shape)[:80]}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _broken(shard, f"tensor `{name}` has the impossible offsets {json.dumps(offsets)[:80]}")
    size = offsets[1] - offsets[0]
    if size != prod(shape) * DTYPES[dtype]:
        raise _broken(shard, f"tensor `{name}` takes {size} bytes and its shape asks for {prod(shape) * DTYPES[dtype]}")
    return Entry(name, dtype, tuple(shape), shard, begin + offsets[0], size)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _read_index(files: Files, names: set[str]) -> dict[str, str]:
    size = files.size(INDEX)
    if size > MAX_INDEX:
        raise MalformedFile(f"`{INDEX}` has {size} bytes, and at most {MAX_INDEX} are allowed")
    raw = files.read(INDEX, 0, size) if size else b""
    check_substance(raw, INDEX)
    shard_of = load_json(raw, INDEX).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of or not all(isinstance(shard, str) for shard in shard_of.values()):
        raise MalformedFile(f"`{INDEX}` has no `weight_map` from tensors to files")
    for shard in sorted(set(shard_of.values())):
        if "/" in shard or "\\" in shard or "\0" in shard or not shard.endswith(".safetensors"):
            raise MalformedFile(f"`{INDEX}` names `{shard[:80]}`, which cannot be a file of weights")
        if shard not in names:
            raise MalformedFile(f"`{shard}` is missing, and `{INDEX}` names it", hint="download the model again")
    return shard_of


def _no_weights(names: set[str]) -> UnsupportedModel:
    pickles = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
    if pickles:
        return UnsupportedModel(
            f"it has its weights only in `{pickles[0]}`, a pickle, which can run any code when it is opened",
            hint="use a repository or revision with `model.safetensors`, or convert the weights where you trust them",
        )
    return UnsupportedModel(f"there is neither `{SINGLE}` nor `{INDEX}`", hint="is this the folder of a model?")
