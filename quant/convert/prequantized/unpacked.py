"""HQQ and torchao: `W_q` with `scale`, `zero` and numbers about them, and `_weight_qdata` with `_weight_scale`."""

from __future__ import annotations

import re
from math import prod
from typing import Any

import numpy as np

from quant.convert.prequantized.floats import floats_with_scales
from quant.convert.prequantized.pairing import WEIGHTS, Found, companion, do_not_fit, packed
from quant.convert.prequantized.rows import whole_integers
from quant.errors import MalformedFile, UnsupportedModel
from quant.plan import Files
from quant.safetensors import Entry
from quant.stream.packed.codes import exact_type
from quant.stream.packed.halves import PackedHqq

_SCALES = ("F16", "BF16", "F32")
# Codes to a word and bits of each, by the packing.
_PACKINGS = {b"8bit_u8": (1, 8), b"4bit_u8": (2, 4), b"3bit_32": (10, 3), b"2bit_u8": (4, 2), b"1bit_u8": (8, 1)}
_NUMBERS = {"I32": "<i4", "I64": "<i8", "U8": "u1", "F32": "<f4"}
_TOLD = ("shape", "axis", "group_size", "nbits", "packing")
# The numbers about a matrix lie together in a file: tensors that are no further apart than this are read in one piece.
_SMALL, _GAP = 64, 64 << 10
# The type of the weights in torchao's configuration.
_INTEGERS = re.compile(r"'weight_dtype': \{[^{}]*'int([1-8])'")


def read_hqq(config: dict[str, Any], found: Found, files: Files) -> Found:
    """Each `…W_q` becomes `…weight`; the numbers about it are read, and left out."""
    bases = [entry.name.removesuffix("W_q") for entry in found.values() if entry.name.endswith(".W_q")]
    told = _numbers(files, [found[base + key] for base in bases for key in _TOLD if base + key in found])
    for base in bases:
        _hqq(found, base, {key: told[base + key] for key in _TOLD if base + key in told})
        for entry in [each for each in found.values() if each.name.startswith(base) and each.size <= _SMALL]:
            if entry.name.removeprefix(base) not in ("weight", "bias", "scale", "zero"):
                del found[entry.name]
    return found


def _numbers(files: Files, entries: list[Entry]) -> dict[str, np.ndarray]:
    """The values of small tensors by name."""
    read: dict[str, np.ndarray] = {}
    run: list[Entry] = []
    for entry in [*sorted(entries, key=lambda entry: (entry.shard, entry.offset)), None]:
        if run and (entry is None or entry.shard != run[0].shard or entry.offset > run[-1].offset + _GAP):
            begin = run[0].offset
            data = files.read(run[0].shard, begin, run[-1].offset + run[-1].size - begin)
            for each in run:
                part = data[each.offset - begin : each.offset - begin + each.size]
                read[each.name] = np.frombuffer(part, _NUMBERS[each.dtype])
            run = []
        if entry is not None and entry.size <= _SMALL and entry.dtype in _NUMBERS:
            run.append(entry)
    return read


def _hqq(found: Found, base: str, told: dict[str, np.ndarray]) -> None:
    words = found[base + "W_q"]
    if [key for key in _TOLD if key not in told or (key not in ("shape", "packing") and told[key].size != 1)]:
        raise MalformedFile(f"`{words.name}` lies there without the numbers about it, such as `{base}shape`", WEIGHTS)
    per, width = _PACKINGS.get(told["packing"].tobytes(), (0, 0))
    bits, group, axis = (int(told[key][0]) for key in ("nbits", "group_size", "axis"))
    if not per or not 0 < bits <= width or axis not in (0, 1) or words.dtype != ("I32" if per == 10 else "U8"):
        numbers = f"{bits} bits, axis {axis}, packing {told['packing'].tobytes()[:20]!a}"
        raise UnsupportedModel(f"the model is already quantized, by HQQ with {numbers}", WEIGHTS)
    shape = tuple(int(size) for size in told["shape"])
    if len(shape) != 2 or min(shape) < 1 or group < 1 or prod(shape) % group:
        raise do_not_fit(words, base + "shape")
    rows, columns = shape
    count = rows * columns // group
    lines, length = (count, group) if axis else (group, count)
    if len(words.shape) != 2 or words.shape[1] != length or words.shape[0] != -(-lines // per):
        raise do_not_fit(words, base + "shape")
    scale = companion(found, words, base + "scale", _SCALES, (count, 1), (1, count))
    companion(found, words, base + "zero", (scale.dtype,), (count, 1), (1, count))
    across = axis == 0 or columns % group != 0
    if across and axis:
        raise UnsupportedModel(f"the groups of `{words.name}` go over the ends of rows", WEIGHTS)
    exact = None if across else exact_type(bits, False, columns, columns // group)
    packing = PackedHqq(rows, columns, group, bits, per, width, scale.dtype, across, exact)
    packed(found, [words.name, scale.name, base + "zero"], base + "weight", shape, packing)


def read_torchao(config: dict[str, Any], found: Found, files: Files) -> Found:
    """`…_weight_qdata` becomes `…weight`, where its codes are whole bytes: integers, or FP8."""
    told = repr(config.get("quant_type"))
    bits = {int(each) for each in _INTEGERS.findall(told)}
    codes = bits.pop() if len(bits) == 1 else 8, "ASYMMETRIC" not in told
    for entry in [entry for entry in found.values() if entry.name.endswith("._weight_qdata")]:
        base, name = entry.name.removesuffix("qdata"), entry.name.removesuffix("_weight_qdata") + "weight"
        if base + "act_pre_scale" in found or entry.dtype not in ("I8", "F8_E4M3") or "Int4WeightOnly" in told:
            raise UnsupportedModel(f"the model is already quantized, by torchao as {_kind(config)}", WEIGHTS)
        if entry.dtype == "I8":
            whole_integers(found, entry, name, base + "scale", base + "zero_point", codes, "torchao")
        else:
            floats_with_scales(entry, found, name, base + "scale")
        for part in ("act_quant_scale", "act_quant_zero_point"):
            found.pop(base + part, None)
    return found


def _kind(config: dict[str, Any]) -> str:
    kind = config.get("quant_type")
    kind = kind.get("default", kind) if isinstance(kind, dict) else kind
    return ascii(kind.get("_type") if isinstance(kind, dict) else kind)[:60]
