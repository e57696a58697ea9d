"""GPTQ and AWQ: `qweight`, `qzeros`, `scales` and, for GPTQ, `g_idx`."""

from __future__ import annotations

from typing import Any

import numpy as np

from quant.convert.prequantized.pairing import (
    WEIGHTS,
    Found,
    companion,
    do_not_fit,
    groups_of,
    number,
    packed,
)
from quant.errors import UnsupportedModel
from quant.plan import Files
from quant.safetensors import Entry
from quant.stream.packed.codes import exact_type
from quant.stream.packed.transposed import PackedAwq, PackedGptq

_SCALES = ("F16", "BF16", "F32")
_BITS = (2, 3, 4, 8)
# Layouts of AutoRound, and who reads them.
_AUTO_ROUND = {"auto_round": "gptq", "auto_gptq": "gptq", "gptq": "gptq", "auto_awq": "awq", "awq": "awq"}


def read_gptq(config: dict[str, Any], found: Found, files: Files) -> Found:
    """Each `…qweight` becomes `…weight`. Raises UnsupportedModel for codes that are not packed in 32-bit words."""
    bits = number(config, "bits", _BITS)
    form = config.get("checkpoint_format") or config.get("format") or "gptq"
    if form not in ("gptq", "gptq_v2"):
        raise UnsupportedModel(f"the model is already quantized, in the format {ascii(form)[:40]} of GPTQ", WEIGHTS)
    dynamic = config.get("dynamic") or {}
    # Rules that begin with a minus leave matrices as they are; these are not packed, whatever their names are.
    if not isinstance(dynamic, dict) or not all(str(rule).startswith("-:") for rule in dynamic):
        raise UnsupportedModel("the model is already quantized, in several ways (`dynamic`)", WEIGHTS)
    symmetric, ordered = config.get("sym") is True, config.get("desc_act") is not True
    for words in _words(found):
        base = words.name.removesuffix("qweight")
        if words.dtype != "I32" or len(words.shape) != 2 or words.shape[0] * 32 % bits:
            raise do_not_fit(words, base + "scales")
        columns, rows = words.shape[0] * 32 // bits, words.shape[1]
        scales = found.get(base + "scales")
        if not scales or len(scales.shape) != 2 or scales.shape[1] != rows or scales.dtype not in _SCALES:
            raise do_not_fit(words, base + "scales")
        groups = groups_of(words, columns, scales.shape[0], scales.name)
        companion(found, words, base + "qzeros", ("I32",), (groups, rows * bits // 32))
        parts = [words.name, base + "qzeros", scales.name]
        index = found.get(base + "g_idx")
        if index is not None:
            companion(found, words, index.name, ("I32",), (columns,))
            parts.append(index.name)
            ordered = ordered or _in_order(files, index, columns // groups)
        exact = exact_type(bits, symmetric, columns, groups) if ordered or index is None else None
        packing = PackedGptq(
            rows, columns, groups, bits, scales.dtype, 0 if form == "gptq_v2" else 1, index is not None, exact
        )
        packed(found, parts, base + "weight", (rows, columns), packing)
    return found


def read_auto_round(config: dict[str, Any], found: Found, files: Files) -> Found:
    """AutoRound in the layout of GPTQ or AWQ. Raises UnsupportedModel for another one, or several in one model."""
    layout, _, zeros = str(config.get("packing_format", "")).removeprefix("auto_round:").partition(":")
    own = config.get("extra_config") or {}
    whole = isinstance(own, dict) and all(isinstance(each, dict) and each.get("bits", 0) >= 16 for each in own.values())
    if layout not in _AUTO_ROUND or zeros not in ("", "zp") or not whole:
        told = "in several ways (`extra_config`)" if layout in _AUTO_ROUND and not whole else f"as {ascii(layout)[:40]}"
        raise UnsupportedModel(f"the model is already quantized, by AutoRound {told}", WEIGHTS)
    if _AUTO_ROUND[layout] == "awq":
        return read_awq({**config, "version": "gemm"}, found, files)
    form = "gptq_v2" if zeros else "gptq"
    return read_gptq({**config, "checkpoint_format": form, "desc_act": False}, found, files)


def read_awq(config: dict[str, Any], found: Found, files: Files) -> Found:
    """Each `…qweight` becomes `…weight`. Raises UnsupportedModel for another layout than `gemm`."""
    number(config, "bits", (4,))
    layout = str(config.get("version", "gemm")).lower()
    if layout != "gemm":
        raise UnsupportedModel(f"the model is already quantized, in the layout {ascii(layout)[:40]} of AWQ", WEIGHTS)
    for words in _words(found):
        base = words.name.removesuffix("qweight")
        scales = found.get(base + "scales")
        if words.dtype != "I32" or len(words.shape) != 2 or not scales or len(scales.shape) != 2:
            raise do_not_fit(words, base + "scales")
        columns, rows = words.shape[0], words.shape[1] * 8
        if scales.shape[1] != rows or scales.dtype not in _SCALES:
            raise do_not_fit(words, scales.name)
        groups = groups_of(words, columns, scales.shape[0], scales.name)
        parts = [words.name, scales.name]
        zeroed = base + "qzeros" in found
        if zeroed:
            parts.append(companion(found, words, base + "qzeros", ("I32",), (groups, rows // 8)).name)
        exact = exact_type(4, not zeroed, columns, groups)
        packed(
            found,
            parts,
            base + "weight",
            (rows, columns),
            PackedAwq(rows, columns, groups, scales.dtype, zeroed, exact),
        )
    return found


def _words(found: Found) -> list[Entry]:
    return [entry for entry in found.values() if entry.name.endswith(".qweight")]


def _in_order(files: Files, index: Entry, size: int) -> bool:
    """Whether the columns of a matrix are in the order of their groups."""
    read = np.frombuffer(files.read(index.shard, index.offset, index.size), "<i4")
    return np.array_equal(read, np.arange(len(read)) // size)
