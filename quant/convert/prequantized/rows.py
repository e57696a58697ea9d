"""compressed-tensors and MLX: matrices packed row by row."""

from __future__ import annotations

import re
from typing import Any

from quant.convert.prequantized.floats import floats_with_scales, mlx_floats, packed_floats
from quant.convert.prequantized.mlx import path_of
from quant.convert.prequantized.pairing import WEIGHTS, Found, companion, do_not_fit, groups_of, packed
from quant.errors import UnsupportedModel
from quant.plan import Files
from quant.safetensors import Entry
from quant.stream.packed.codes import exact_type
from quant.stream.packed.rows import PackedAffine, PackedBytes, PackedRows

_SCALES = ("F16", "BF16", "F32")
_FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
    "nvfp4-pack-quantized",
)
# They are about activations and loaders, or tell a shape that the words tell too.
_UNUSED = re.compile(r".*\.(weight_shape|weight_g_idx|input_global_scale|(input|output)_(scale|zero_point))")


def read_compressed(config: dict[str, Any], found: Found, files: Files) -> Found:
    """`…weight_packed` becomes `…weight`; whole bytes keep their name. Each group of the configuration has its form."""
    schemes = _schemes(config)
    if any(entry.name.endswith(".weight_g_idx") for entry in found.values()):
        raise UnsupportedModel("the model is already quantized, with groups out of order (`weight_g_idx`)", WEIGHTS)
    for name in [name for name in found if _UNUSED.fullmatch(name)]:
        del found[name]
    for entry in list(found.values()):
        if entry.name.endswith(".weight_packed") and entry.dtype == "U8":
            packed_floats(entry, found, entry.name.removesuffix("_packed"), "_scale", "_global_scale", -1)
        elif entry.name.endswith(".weight_packed"):
            _packed_integers(entry, found, _scheme(schemes))
        elif entry.dtype == "I8" and entry.name.endswith(".weight"):
            zeros = entry.name + "_zero_point"
            exact = 8, zeros not in found
            whole_integers(found, entry, entry.name, entry.name + "_scale", zeros, exact, "compressed-tensors")
        elif entry.dtype == "F8_E4M3" and entry.name.endswith(".weight"):
            floats_with_scales(entry, found)
    return found


def _schemes(config: dict[str, Any]) -> list[dict[str, Any]]:
    """How weights are quantized, by each group of the configuration; UnsupportedModel for a way that is not known."""
    groups = config.get("config_groups")
    overall = config.get("format")
    if not isinstance(groups, dict) or not groups or not all(isinstance(group, dict) for group in groups.values()):
        raise UnsupportedModel("the model is already quantized, and `config_groups` does not say how", WEIGHTS)
    schemes = []
    for group in groups.values():
        form = group.get("format") or overall
        weights = group.get("weights")
        if form not in _FORMATS or not isinstance(weights, dict):
            raise UnsupportedModel(f"the model is already quantized, in the format {ascii(form)[:40]}", WEIGHTS)
        schemes.append(weights)
    return schemes


def _scheme(schemes: list[dict[str, Any]]) -> dict[str, Any]:
    """The one scheme that all packed weights have; UnsupportedModel for several numbers of bits."""
    schemes = [scheme for scheme in schemes if scheme.get("type", "int") == "int"]
    if len({(scheme.get("num_bits"), scheme.get("symmetric")) for scheme in schemes}) != 1:
        raise UnsupportedModel("the model is already quantized, to several numbers of bits", WEIGHTS)
    return schemes[0]


def _packed_integers(words: Entry, found: Found, scheme: dict[str, Any]) -> None:
    base = words.name.removesuffix("_packed")
    bits, scales = scheme.get("num_bits"), found.get(base + "_scale")
    if type(bits) is not int or not 1 < bits <= 8:
        raise UnsupportedModel(f"the model is already quantized, with `num_bits` {ascii(bits)[:40]}", WEIGHTS)
    if words.dtype != "I32" or len(words.shape) != 2 or not scales or len(scales.shape) != 2:
        raise do_not_fit(words, base + "_scale")
    rows, length = words.shape
    size = scheme.get("group_size") if scheme.get("strategy") == "group" else None
    groups = scales.shape[1]
    columns = groups * size if type(size) is int and size > 0 else _columns(length, bits)
    dense = length == -(-columns * bits // 32)
    if scales.shape[0] != rows or scales.dtype not in _SCALES or (not dense and length != -(-columns // (32 // bits))):
        raise do_not_fit(words, scales.name)
    groups_of(words, columns, groups, scales.name)
    parts, zeros = [words.name, scales.name], found.get(base + "_zero_point")
    if zeros:
        parts.append(companion(found, words, zeros.name, ("I32",), (-(-rows * bits // 32), groups)).name)
    exact = exact_type(bits, not zeros, columns, groups)
    packing = PackedRows(rows, columns, groups, bits, scales.dtype, bool(zeros), dense, exact)
    packed(found, parts, base, (rows, columns), packing)


def _columns(length: int, bits: int) -> int:
    """The columns of a row of words without groups: models have multiples of 32, which leave no word half full."""
    return length * 32 // bits


def whole_integers(
    found: Found, entry: Entry, name: str, scale: str, zero: str, codes: tuple[int, bool], maker: str
) -> None:
    """Signed bytes become `name`; `codes` are their bits, and whether zero stands for 0. Raises MalformedFile."""
    scales, (bits, symmetric) = found.get(scale), codes
    if len(entry.shape) != 2 or not scales or scales.dtype not in _SCALES:
        raise do_not_fit(entry, scale)
    rows, columns = entry.shape
    groups = scales.shape[1] if len(scales.shape) == 2 and scales.shape[0] == rows else 1
    if scales.shape not in ((), (1,), (rows,), (rows, groups)):
        raise do_not_fit(entry, scale)
    groups_of(entry, columns, groups, scale)
    parts = [entry.name, scale]
    zeroed = zero in found
    if zeroed:
        parts.append(companion(found, entry, zero, ("I8",), scales.shape).name)
    # The distance of a code from its zero takes one bit more, which the type of the next size has.
    exact = exact_type(bits if symmetric else bits + 1, symmetric or bits < 8, columns, groups)
    packing = PackedBytes(rows, columns, groups, bits, scales.dtype, zeroed, maker, exact)
    packed(found, parts, name, entry.shape, packing)


def read_mlx(config: dict[str, Any], found: Found, files: Files) -> Found:
    """`…weight` U32 with `…scales` and `…biases`; a matrix may have numbers of its own in the configuration."""
    for words in [entry for entry in found.values() if entry.dtype == "U32" and entry.name.endswith(".weight")]:
        base = words.name.removesuffix("weight")
        own = config.get(path_of(base.removesuffix(".")))
        scheme = {**config, **own} if isinstance(own, dict) else config
        bits, size, mode = scheme.get("bits"), scheme.get("group_size"), scheme.get("mode", "affine")
        if mode in ("mxfp4", "nvfp4", "mxfp8"):
            mlx_floats(words, found, str(mode))
            continue
        if mode != "affine" or type(bits) is not int or not 0 < bits <= 8 or type(size) is not int or size < 1:
            told = f"`mode` {ascii(mode)[:20]}, `bits` {ascii(bits)[:20]}, `group_size` {ascii(size)[:20]}"
            raise UnsupportedModel(f"the model is already quantized, by MLX with {told}", WEIGHTS)
        scales = found.get(base + "scales")
        if len(words.shape) != 2 or not scales or scales.dtype not in _SCALES or words.shape[1] * 32 % bits:
            raise do_not_fit(words, base + "scales")
        rows, columns = words.shape[0], words.shape[1] * 32 // bits
        if scales.shape != (rows, columns // size) or columns % size:
            raise do_not_fit(words, scales.name)
        companion(found, words, base + "biases", (scales.dtype,), scales.shape)
        exact = exact_type(bits, False, columns, columns // size)
        packing = PackedAffine(rows, columns, columns // size, bits, scales.dtype, exact)
        packed(found, [words.name, scales.name, base + "biases"], words.name, (rows, columns), packing)
    return found
