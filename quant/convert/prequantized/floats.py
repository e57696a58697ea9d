"""MXFP4 and FP8, as their makers publish them.

MXFP4 has `…_blocks` [experts, rows, groups, 16] and `…_scales` [experts, rows, groups], all of them bytes. FP8 has a
matrix of E4M3 and beside it `…_scale_inv`: one number for every square of 128 by 128, or a single one. Scales of
activations (`…activation_scale`) are not needed.
"""

from __future__ import annotations

from typing import Any

from quant.convert.prequantized.pairing import Found, do_not_fit, packed
from quant.plan import Files
from quant.safetensors import Entry
from quant.stream.packed.floats import GROUP, SQUARE, PackedFp8, PackedMxfp4

_BLOCKS, _SCALES, _INVERSE = "_blocks", "_scales", "_scale_inv"


def read_floats(config: dict[str, Any], found: Found, files: Files) -> Found:
    """`…down_proj_blocks` U8 [8, 64, 4, 16] becomes `…down_proj` [8, 64, 128]; a matrix in FP8 keeps its name."""
    fp8 = [entry.name for entry in found.values() if entry.dtype == "F8_E4M3"]
    for name in fp8:
        found.pop(name.removesuffix("weight") + "activation_scale", None)
    for entry in list(found.values()):
        if entry.name.endswith(_BLOCKS) and entry.dtype == "U8":
            _mxfp4(entry, found)
        elif entry.dtype == "F8_E4M3" and entry.name + _INVERSE in found:
            _fp8(entry, found)
    return found


def _mxfp4(entry: Entry, found: Found) -> None:
    name = entry.name.removesuffix(_BLOCKS)
    scales = found.get(name + _SCALES)
    if len(entry.shape) < 3 or entry.shape[-1] != GROUP // 2 or not scales or scales.dtype != "U8":
        raise do_not_fit(entry, name + _SCALES)
    if scales.shape != entry.shape[:-1]:
        raise do_not_fit(entry, scales.name)
    columns = entry.shape[-2] * GROUP
    packed(found, [entry.name, scales.name], name, (*entry.shape[:-2], columns), PackedMxfp4(columns))


def _fp8(entry: Entry, found: Found) -> None:
    scales = found[entry.name + _INVERSE]
    squares = tuple(-(-size // SQUARE) for size in entry.shape)
    if len(entry.shape) != 2 or scales.dtype not in ("F32", "BF16") or scales.shape not in ((), (1,), squares):
        raise do_not_fit(entry, scales.name)
    edge = 0 if scales.shape in ((), (1,)) else SQUARE
    packing = PackedFp8(entry.shape[1], scales.dtype, edge, edge)
    packed(found, [entry.name, scales.name], entry.name, entry.shape, packing)
