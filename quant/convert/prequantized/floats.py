"""MXFP4, NVFP4 and FP8, as their makers publish them.

MXFP4 has `…_blocks` [experts, rows, groups, 16] and `…_scales` [experts, rows, groups], all of them bytes. FP8 has a
matrix of E4M3 and beside it `…_scale_inv`: one number for every square of 128 by 128, or a single one. Scales of
activations (`…activation_scale`) are not needed.

compressed-tensors, modelopt and MLX have bytes with two elements each [rows, columns / 2]. Their scales tell which
format it is: bytes [rows, columns / 32] are MXFP4's, E4M3 [rows, columns / 16] are NVFP4's.
"""

from __future__ import annotations

import re
from typing import Any

from quant.convert.prequantized.pairing import WEIGHTS, Found, companion, do_not_fit, packed
from quant.errors import UnsupportedModel
from quant.plan import Files, Packing
from quant.safetensors import Entry
from quant.stream.packed.floats import GROUP, NV_GROUP, SQUARE, PackedFp8, PackedMxfp4, PackedNvfp4

_FLOATS = ("F32", "BF16", "F16")
# They are about activations and caches.
_UNUSED = re.compile(r".*\.(input_scale|k_scale|v_scale|output_scale)")
# MLX stores the largest magnitude of a matrix, for which the largest element (6) and scale (448) stand.
_OF_LARGEST = 1 / (6 * 448)
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


def read_modelopt(config: dict[str, Any], found: Found, files: Files) -> Found:
    """`…weight` in FP8 or NVFP4 keeps its name. Raises UnsupportedModel for other ways of modelopt."""
    for name in [name for name in found if _UNUSED.fullmatch(name)]:
        del found[name]
    for entry in list(found.values()):
        if not entry.name.endswith(".weight"):
            continue
        if entry.dtype == "F8_E4M3":
            floats_with_scales(entry, found)
        elif entry.dtype == "U8":
            packed_floats(entry, found, entry.name, "_scale", "_scale_2", 1)
        elif entry.dtype not in _FLOATS:
            way = ascii(config.get("quant_algo"))[:40]
            raise UnsupportedModel(f"the model is already quantized, by modelopt to {way}", WEIGHTS)
    return found


def packed_floats(entry: Entry, found: Found, name: str, scale: str, whole: str, sign: int) -> None:
    """Pairs of elements with scales `name` + `scale`, and perhaps one for the matrix, `name` + `whole`.

    With a `sign` of −1 that one divides the values. Raises MalformedFile.
    """
    scales = found.get(name + scale)
    if len(entry.shape) != 2 or not scales or len(scales.shape) != 2:
        raise do_not_fit(entry, name + scale)
    rows, columns = entry.shape[0], entry.shape[1] * 2
    if (scales.dtype, scales.shape) == ("U8", (rows, columns // GROUP)) and columns % GROUP == 0:
        packed(found, [entry.name, scales.name], name, (rows, columns), PackedMxfp4(columns))
        return
    if (scales.dtype, scales.shape) != ("F8_E4M3", (rows, columns // NV_GROUP)) or columns % NV_GROUP:
        raise do_not_fit(entry, scales.name)
    parts, factor = [entry.name, scales.name], found.get(name + whole)
    if factor:
        parts.append(companion(found, entry, factor.name, ("F32",), (), (1,), (1, 1)).name)
    packed(found, parts, name, (rows, columns), _nvfp4(columns, sign if factor else 0))


def _nvfp4(columns: int, whole: float = 0) -> PackedNvfp4:
    """Exact where GGML's blocks of 64 can hold the matrix; a scale of the whole matrix has no place in them."""
    packing = PackedNvfp4(columns, whole, None)
    return packing if whole else packing.without_whole()


def floats_with_scales(entry: Entry, found: Found, name: str = "", scale: str = "") -> None:
    """A matrix in FP8 with scales: one, one for each row, each square, or each 32 elements of a row.

    It becomes `name`, by default its own; its scales are `scale`, by default its name and `_scale`.
    """
    scale = scale or entry.name + "_scale"
    scales = found.get(scale)
    if len(entry.shape) != 2 or not scales:
        raise do_not_fit(entry, scale)
    rows, columns = entry.shape
    squares = (-(-rows // SQUARE), -(-columns // SQUARE))
    edges = {(): (0, 0), (1,): (0, 0), (1, 1): (0, 0), (rows,): (1, 0), (rows, 1): (1, 0), squares: (SQUARE, SQUARE)}
    if scales.dtype == "U8":
        edges = {} if columns % GROUP else {(rows, columns // GROUP): (1, GROUP)}
    if scales.dtype not in (*_FLOATS, "U8") or scales.shape not in edges:
        raise do_not_fit(entry, scales.name)
    packed(
        found,
        [entry.name, scales.name],
        name or entry.name,
        entry.shape,
        PackedFp8(columns, scales.dtype, *edges[scales.shape]),
    )


def mlx_floats(words: Entry, found: Found, mode: str) -> None:
    """A matrix of MLX in small floats: `…weight` in words of 32 bits, `…scales` in bytes. Raises MalformedFile."""
    base = words.name.removesuffix("weight")
    scales = found.get(base + "scales")
    if len(words.shape) != 2 or not scales or scales.dtype != "U8" or base + "biases" in found:
        raise do_not_fit(words, base + "scales")
    rows, columns = words.shape[0], words.shape[1] * (4 if mode == "mxfp8" else 8)
    size = NV_GROUP if mode == "nvfp4" else GROUP
    if columns % size or scales.shape != (rows, columns // size):
        raise do_not_fit(words, scales.name)
    parts = [words.name, scales.name]
    packing: Packing = PackedMxfp4(columns)
    if mode == "mxfp8":
        packing = PackedFp8(columns, "U8", 1, GROUP)
    elif mode == "nvfp4":
        whole = base + "global_scale" in found
        if whole:
            parts.append(companion(found, words, base + "global_scale", ("F32",), (), (1,)).name)
        packing = _nvfp4(columns, _OF_LARGEST if whole else 0)
    packed(found, parts, words.name, (rows, columns), packing)
