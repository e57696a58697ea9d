"""bitsandbytes: `weight` with `weight.absmax`, `weight.quant_map` and its state, or bytes with `SCB`."""

from __future__ import annotations

import json
from math import prod
from typing import Any

from quant.convert.prequantized.pairing import WEIGHTS, Found, companion, do_not_fit, packed
from quant.errors import MalformedFile, UnsupportedModel
from quant.plan import Files
from quant.safetensors import Entry
from quant.stream.packed.codes import exact_type
from quant.stream.packed.table import PackedInt8, PackedTable

_STATE = ".quant_state.bitsandbytes__"
_STATE_BYTES = 64 << 10  # a state names a shape, a type and a few numbers


def read_bitsandbytes(config: dict[str, Any], found: Found, files: Files) -> Found:
    """A matrix keeps its name and gets its shape back, which four-bit codes do not have."""
    for state in [entry for entry in found.values() if _STATE in entry.name]:
        name, kind = state.name.split(_STATE, 1)
        weights = found.get(name)
        if weights is None or weights.dtype != "U8":
            raise MalformedFile(f"`{state.name}` is about weights that are not there", WEIGHTS)
        _four_bits(found, weights, kind, state, _state(files, state))
    for entry in list(found.values()):
        if entry.dtype == "I8" and entry.name.endswith(".weight"):
            _whole_bytes(found, entry)
        elif entry.dtype == "U8" and entry.name.endswith(".weight"):
            raise do_not_fit(entry, entry.name + _STATE + "nf4")
    for name in [name for name in found if name.endswith(".weight_format")]:
        del found[name]
    return found


def _state(files: Files, entry: Entry) -> dict[str, Any]:
    """The state of a matrix, which is JSON; raises MalformedFile."""
    try:
        if entry.size > _STATE_BYTES:
            raise ValueError
        state = json.loads(files.read(entry.shard, entry.offset, entry.size))
        if not isinstance(state, dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise MalformedFile(f"`{entry.name}` is no description of packed weights", WEIGHTS) from None
    return state


def _four_bits(found: Found, weights: Entry, kind: str, entry: Entry, state: dict[str, Any]) -> None:
    name, shape, block = weights.name, state.get("shape"), state.get("blocksize")
    if kind not in ("nf4", "fp4"):
        raise UnsupportedModel(f"the model is already quantized, to {ascii(kind)[:40]} of bitsandbytes", WEIGHTS)
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(size) is int and size > 0 for size in shape):
        raise MalformedFile(f"the state of `{name}` has no shape", WEIGHTS)
    if type(block) is not int or block < 2 or block % 2:
        raise MalformedFile(f"the state of `{name}` has no size of its blocks", WEIGHTS)
    rows, columns = shape
    if prod(weights.shape) * 2 != rows * columns:
        raise do_not_fit(weights, name + ".absmax")
    count = -(-rows * columns // block)
    parts = [name, name + ".absmax", name + ".quant_map"]
    companion(found, weights, parts[2], ("F32",), (16,))
    nested = 0
    if name + ".nested_absmax" in found:
        size, offset = state.get("nested_blocksize"), state.get("nested_offset")
        if type(size) is not int or size < 1 or type(offset) not in (int, float):
            raise MalformedFile(f"the state of `{name}` does not say how its scales are packed", WEIGHTS)
        nested = size
        companion(found, weights, parts[1], ("U8",), (count,))
        companion(found, weights, name + ".nested_absmax", ("F32",), (-(-count // nested),))
        companion(found, weights, name + ".nested_quant_map", ("F32",), (256,))
        parts += [name + ".nested_absmax", name + ".nested_quant_map", entry.name]
    else:
        companion(found, weights, parts[1], ("F32",), (count,))
        del found[entry.name]
    packing = PackedTable(kind.upper(), rows, columns, block, nested)
    packed(found, parts, name, (rows, columns), packing)


def _whole_bytes(found: Found, entry: Entry) -> None:
    scales = entry.name.removesuffix("weight") + "SCB"
    if len(entry.shape) != 2:
        raise do_not_fit(entry, scales)
    rows, columns = entry.shape
    companion(found, entry, scales, ("F32",), (rows,))
    packing = PackedInt8(rows, columns, exact_type(8, True, columns, 1))
    packed(found, [entry.name, scales], entry.name, entry.shape, packing)
