"""Sources whose weights are quantized: finds the scales of each tensor, and refuses methods that we cannot read.

MXFP4 has `…_blocks` [experts, rows, groups, 16] and `…_scales` [experts, rows, groups], all of them bytes. FP8 has a
matrix of E4M3 and beside it `…_scale_inv`: one number for every square of 128 by 128, or a single one. Scales of
activations (`…activation_scale`) are not needed. `quant/stream/scaled.py` knows what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from quant.convert.config import ModelConfig
from quant.errors import MalformedFile, UnsupportedModel
from quant.safetensors import Entry
from quant.stream.scaled import SCALED, SQUARE

_BLOCKS, _SCALES, _INVERSE = "_blocks", "_scales", "_scale_inv"
_GROUP = 16  # bytes of a group of 32 elements


def check_method(config: ModelConfig) -> str:
    """The method by which the weights are quantized: `mxfp4`, `fp8`, or "" for none; UnsupportedModel for others."""
    quantized: Any = config.get("quantization_config")
    if not quantized:
        return ""
    method = quantized.get("quant_method") if isinstance(quantized, dict) else None
    if method == "mxfp4" or (method == "fp8" and quantized.get("weight_block_size") in (None, [SQUARE, SQUARE])):
        return str(method)
    hint = "use the repository with the original weights"
    raise UnsupportedModel(f"the model is already quantized ({ascii(method)[:40]})", hint=hint)


def pair(entries: Iterable[Entry]) -> list[Entry]:
    """The tensors; a quantized one has its `scales`, a dtype of `scaled.SCALED`, and the matrix's own name and shape.

    `…down_proj_blocks` U8 [8, 64, 4, 16] becomes `…down_proj` MXFP4 [8, 64, 128]. The tensors of scales stay in the
    list, too, so that it names all files of the source. Raises MalformedFile where scales do not fit.
    """
    found = {entry.name: entry for entry in entries}
    fp8 = [entry.name for entry in found.values() if entry.dtype == "F8_E4M3"]
    unused = {name.removesuffix("weight") + "activation_scale" for name in fp8}
    return [_with_scales(entry, found) for name, entry in found.items() if name not in unused]


def _with_scales(entry: Entry, found: dict[str, Entry]) -> Entry:
    if entry.name.endswith(_BLOCKS) and entry.dtype == "U8":
        name = entry.name.removesuffix(_BLOCKS)
        scales = found.get(name + _SCALES)
        if len(entry.shape) < 3 or entry.shape[-1] != _GROUP or not scales or scales.dtype != "U8":
            raise _do_not_fit(entry, name + _SCALES)
        if scales.shape != entry.shape[:-1]:
            raise _do_not_fit(entry, scales.name)
        shape = (*entry.shape[:-2], entry.shape[-2] * SCALED["MXFP4"].columns)
        return replace(entry, name=name, dtype="MXFP4", shape=shape, scales=scales)
    scales = found.get(entry.name + _INVERSE)
    if entry.dtype != "F8_E4M3" or scales is None:
        return entry
    squares = tuple(-(-size // SQUARE) for size in entry.shape)
    form = "FP8" if scales.shape in ((), (1,)) else "FP8 in squares"
    dtype = form if scales.dtype == "F32" else f"{form}, {scales.dtype}"
    if len(entry.shape) != 2 or dtype not in SCALED or scales.shape not in ((), (1,), squares):
        raise _do_not_fit(entry, scales.name)
    return replace(entry, dtype=dtype, scales=scales)


def _do_not_fit(entry: Entry, scales: str) -> MalformedFile:
    hint = "use the repository with the original weights"
    return MalformedFile(f"tensor `{entry.name}` and its scales, `{scales}`, do not fit each other", hint)
