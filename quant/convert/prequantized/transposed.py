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
from quant.stream.packed.transposed import PackedAwq, PackedGemv, PackedGptq

_SCALES = ("F16", "BF16", "F32")
_BITS = (2, 3, 4, 8)
# Groups for which the layout `gemv` may have room at the end of a row: four words.
_ROOM = 32
# Layouts of AutoRound, and who reads them.
_AUTO_ROUND = {"auto_round": "gptq", "auto_gptq": "gptq", "gptq": "gptq", "auto_awq": "awq", "awq": "awq"}


def read_gptq(config: dict[str, Any], found: Found, files: Files) -> Found:
    """Each `…qweight` becomes `…weight`. Raises UnsupportedModel for codes that are not packed in 32-bit words."""
    bits = number(config, "bits", _BITS)
    form = config.get("checkpoint_format") or config.get("format") or "gptq"
    if form not in ("gptq", "gptq_v2"):
        raise UnsupportedModel(f"the model is already quantized, in the format {ascii(form)[:40]} of GPTQ", WEIGHTS)
    own = _own_rules(config)
    symmetric = config.get("sym") is True and all(rule.get("sym", True) is True for rule in own)
    ordered = config.get("desc_act") is not True
    for words in _words(found):
        base = words.name.removesuffix("qweight")
        bits = _bits_of(found, words, base + "qzeros") if own else bits
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


def _own_rules(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Settings that some matrices have alone, by patterns of their names. Raises UnsupportedModel.

    Rules that begin with a minus leave matrices as they are; these are not packed, whatever their names are. The others
    may give numbers of bits, which shapes tell too: patterns of a stranger are never tried on names.
    """
    dynamic = config.get("dynamic") or {}
    own = [rule for name, rule in dynamic.items() if not name.startswith("-:")] if isinstance(dynamic, dict) else [None]
    if not all(isinstance(rule, dict) for rule in own):
        raise UnsupportedModel("the model is already quantized, in several ways (`dynamic`)", WEIGHTS)
    return [rule for rule in own if rule]


def _bits_of(found: Found, words: Entry, zeros: str) -> int:
    """The bits of a matrix's codes, by its zero points: one for each row and group. Raises MalformedFile."""
    entry = found.get(zeros)
    if not entry or len(entry.shape) != 2 or len(words.shape) != 2:
        raise do_not_fit(words, zeros)
    bits = next((bits for bits in _BITS if words.shape[1] * bits == entry.shape[1] * 32), None)
    if bits is None:
        raise do_not_fit(words, zeros)
    return bits


def read_auto_round(config: dict[str, Any], found: Found, files: Files) -> Found:
    """AutoRound in the layout of GPTQ or AWQ. Raises UnsupportedModel for another one."""
    layout, _, zeros = str(config.get("packing_format", "")).removeprefix("auto_round:").partition(":")
    own = config.get("extra_config") or {}
    known = isinstance(own, dict) and all(isinstance(each, dict) for each in own.values())
    # A number of bits that no codes have stands for matrices that are left as they are.
    packed = {name: each for name, each in own.items() if each.get("bits", 0) not in (16, 32)} if known else {}
    if layout not in _AUTO_ROUND or zeros not in ("", "zp") or not known or (packed and _AUTO_ROUND[layout] == "awq"):
        told = "in several ways (`extra_config`)" if layout in _AUTO_ROUND else f"as {ascii(layout)[:40]}"
        raise UnsupportedModel(f"the model is already quantized, by AutoRound {told}", WEIGHTS)
    if _AUTO_ROUND[layout] == "awq":
        return read_awq({**config, "version": "gemm"}, found, files)
    form = "gptq_v2" if zeros else "gptq"
    return read_gptq({**config, "checkpoint_format": form, "desc_act": False, "dynamic": packed}, found, files)


def read_awq(config: dict[str, Any], found: Found, files: Files) -> Found:
    """Each `…qweight` becomes `…weight`. Raises UnsupportedModel for another layout than `gemm` and `gemv`."""
    number(config, "bits", (4,))
    layout = str(config.get("version", "gemm")).lower()
    if layout == "gemv":
        return _read_gemv(config, found)
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


def _read_gemv(config: dict[str, Any], found: Found) -> Found:
    """Words along the inputs, rows first; zeros and scales of a row have room for more groups than there are."""
    size = config.get("group_size", config.get("q_group_size"))
    for words in _words(found):
        base = words.name.removesuffix("qweight")
        scales = found.get(base + "scales")
        if words.dtype != "I32" or len(words.shape) != 2 or not scales or scales.dtype not in _SCALES:
            raise do_not_fit(words, base + "scales")
        rows, columns = words.shape[0], words.shape[1] * 8
        if type(size) is not int or size == 0 or size < -1 or columns % size:
            raise UnsupportedModel(f"the model is already quantized, with `group_size` {ascii(size)[:40]}", WEIGHTS)
        groups = 1 if size == -1 else columns // size
        width = scales.shape[1] // 8 if len(scales.shape) == 2 else 0
        if scales.shape != (rows, width * 8) or not groups <= width * 8 <= groups + _ROOM:
            raise do_not_fit(words, scales.name)
        zeros = companion(found, words, base + "qzeros", ("I32",), (rows, width))
        packing = PackedGemv(rows, columns, groups, scales.dtype, exact_type(4, False, columns, groups))
        packed(found, [words.name, zeros.name, scales.name], base + "weight", (rows, columns), packing)
    return found


def _words(found: Found) -> list[Entry]:
    return [entry for entry in found.values() if entry.name.endswith(".qweight")]


def _in_order(files: Files, index: Entry, size: int) -> bool:
    """Whether the columns of a matrix are in the order of their groups."""
    read = np.frombuffer(files.read(index.shard, index.offset, index.size), "<i4")
    return np.array_equal(read, np.arange(len(read)) // size)
