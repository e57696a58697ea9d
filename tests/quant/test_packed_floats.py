"""Models that are published in small floats, or in tables of numbers: their codes, or their values, are in the file.

Each layout is packed here as its definition says; marked tests compare with the packages that write it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant import dequantize
from quant.convert.planning import plan_model
from quant.errors import BadValues, MalformedFile, UnsupportedModel
from quant.levels.budget import types_of
from quant.levels.taken import clauses
from quant.types import QuantType
from tests.quant.packed_sources import RNG, Packer, Source, Tensors, raw, turned, written

T = QuantType
ELEMENTS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
NF4 = np.linspace(-1, 1, 16).astype(np.float32) ** 3  # any table: the file brings its own
NESTED, BLOCK = 256, 64


def e4m3(codes: np.ndarray) -> np.ndarray:
    """The values of codes of E4M3 without infinities, by their definition."""

    def one(code: int) -> float:
        exponent, mantissa = code >> 3 & 15, code & 7
        size = mantissa / 512 if exponent == 0 else math.ldexp(1 + mantissa / 8, exponent - 7)
        return -size if code & 128 else size

    return np.array([one(code) for code in range(256)], np.float32)[codes]


def e4m3_scales(rows: int, groups: int) -> np.ndarray:
    return RNG.integers(8, 120, (rows, groups), np.uint8)


def small(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return ("F8_E4M3", *raw(array)[1:])


def pairs(p: Packer) -> np.ndarray:
    """The codes, which have four bits, two in a byte, the first in its lower half."""
    return p.codes[:, ::2] | p.codes[:, 1::2] << 4


def told(p: Packer, values: np.ndarray) -> None:
    """Remember the numbers that a packed matrix stands for."""
    p.told = values.astype(np.float32)  # type: ignore[attr-defined]


def grouped(p: Packer, size: int, scales: np.ndarray) -> np.ndarray:
    return ELEMENTS[p.codes] * np.repeat(scales, size, 1).astype(np.float32)


def mxfp4(p: Packer, weight: str = "weight_packed", scale: str = "weight_scale", words: bool = False) -> Tensors:
    scales = RNG.integers(118, 128, (p.rows, p.columns // 32), np.uint8)
    told(p, grouped(p, 32, np.ldexp(1.0, scales.astype(int) - 127)))
    stored = np.ascontiguousarray(pairs(p))
    return {weight: raw(stored.view("<u4") if words else stored), scale: raw(scales)}


def nvfp4(p: Packer, whole: str = "", divides: bool = False) -> Tensors:
    scales, factor = e4m3_scales(p.rows, p.columns // 16), np.array([0.0625 if divides else 1 / 448], np.float32)
    factors = 1 / factor if divides else factor
    told(p, grouped(p, 16, e4m3(scales) * (factors if whole else np.float32(1))))
    if not whole:
        return {"weight": raw(np.ascontiguousarray(pairs(p)).view("<u4")), "scales": raw(scales)}
    name = "weight_packed" if divides else "weight"
    return {name: raw(pairs(p)), "weight_scale": small(scales), whole: raw(factor), "input_scale": raw(factor)}


def scaled_nvfp4(p: Packer) -> Tensors:
    """With the largest magnitude of the matrix beside it, as MLX has it."""
    tensors, largest = nvfp4(p), np.array(3.5, np.float32)
    told(p, p.told * (largest / 2688))  # type: ignore[attr-defined]
    return tensors | {"global_scale": raw(largest)}


def fp8(p: Packer, scale: str, shape: tuple[int, ...], words: bool = False) -> Tensors:
    codes = RNG.integers(0, 127, (p.rows, p.columns), np.uint8) | RNG.integers(0, 2, (p.rows, p.columns), np.uint8) << 7
    if scale == "U8":
        scales = RNG.integers(100, 128, (p.rows, p.columns // 32), np.uint8)
        told(p, e4m3(codes) * np.repeat(np.ldexp(1.0, scales.astype(int) - 127), 32, 1))
        stored = raw(codes.view("<u4")) if words else small(codes)
        return {"weight": stored, "scales" if words else "weight_scale": raw(scales)}
    squares = tuple(-(-size // 128) for size in codes.shape) if shape == (128,) else ()
    scales = (RNG.random(squares or shape) / 64 + 1 / 256).astype(np.float32)
    factors = np.repeat(np.repeat(scales, 128, 0), 128, 1)[: p.rows, : p.columns] if squares else scales
    told(p, e4m3(codes) * factors)
    return {"weight": small(codes), "weight_scale": raw(scales)}


def bitsandbytes(p: Packer, nested: bool, kind: str = "nf4", block: int = BLOCK) -> Tensors:
    flat, count = p.codes.reshape(-1), -(-p.codes.size // block)
    state: dict[str, Any] = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": [p.rows, p.columns]}
    tensors = {"weight": raw((flat[::2] << 4 | flat[1::2])[:, None]), "weight.quant_map": raw(NF4)}
    scales = RNG.random(count).astype(np.float32) / 8
    if nested:
        state |= {"nested_blocksize": NESTED, "nested_dtype": "float32", "nested_offset": float(RNG.random()) / 8}
        codes, table = RNG.integers(0, 256, count, np.uint8), (RNG.random(256) / 16).astype(np.float32)
        outer = RNG.random(-(-count // NESTED)).astype(np.float32)
        scales = table[codes] * np.repeat(outer, NESTED)[:count] + np.float32(state["nested_offset"])
        tensors |= {"weight.nested_absmax": raw(outer), "weight.nested_quant_map": raw(table)}
        tensors["weight.absmax"] = raw(codes)
    else:
        tensors["weight.absmax"] = raw(scales)
    tensors[f"weight.quant_state.bitsandbytes__{kind}"] = raw(np.frombuffer(json.dumps(state).encode(), np.uint8))
    told(p, (NF4[flat] * np.repeat(scales, block)[: flat.size]).reshape(p.codes.shape))
    return tensors


def whole_bytes(p: Packer) -> Tensors:
    codes, most = (p.codes.astype(np.int16) - 128).astype(np.int8), RNG.random(p.rows).astype(np.float32) + 1
    scales = (most / np.float32(127)).astype(np.float16).astype(np.float32)
    told(p, codes * scales[:, None])
    return {"weight": raw(codes), "SCB": raw(most), "weight_format": raw(np.zeros(1, np.uint8))}


def compressed(form: str) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "float", "symmetric": True}}}
    return {"quantization_config": {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}}


def of_mlx(mode: str, size: int, bits: int) -> dict[str, Any]:
    return {"quantization": {"group_size": size, "bits": bits, "mode": mode}}


BNB = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
MODELOPT = {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}
Pack = Callable[[Packer], Tensors]
# Layout, configuration, who packs it, bits of a code, and the type that holds the codes; None: none does.
LAYOUTS: list[tuple[str, dict[str, Any], Pack, int, QuantType | None]] = [
    ("compressed-mxfp4", compressed("mxfp4-pack-quantized"), mxfp4, 4, T.MXFP4),
    ("mlx-mxfp4", of_mlx("mxfp4", 32, 4), lambda p: mxfp4(p, "weight", "scales", words=True), 4, T.MXFP4),
    ("mlx-nvfp4", of_mlx("nvfp4", 16, 4), nvfp4, 4, T.NVFP4),
    ("mlx-mxfp8", of_mlx("mxfp8", 32, 8), lambda p: fp8(p, "U8", (), words=True), 8, None),
    (
        "compressed-nvfp4",
        compressed("nvfp4-pack-quantized"),
        lambda p: nvfp4(p, "weight_global_scale", divides=True),
        4,
        T.NVFP4,
    ),
    ("modelopt-nvfp4", MODELOPT, lambda p: nvfp4(p, "weight_scale_2"), 4, T.NVFP4),
    ("mlx-nvfp4-scaled", of_mlx("nvfp4", 16, 4), lambda p: scaled_nvfp4(p), 4, T.NVFP4),
    ("modelopt-fp8", MODELOPT, lambda p: fp8(p, "F32", ()), 8, None),
    ("compressed-fp8-squares", compressed("float-quantized"), lambda p: fp8(p, "F32", (128,)), 8, None),
    ("compressed-mxfp8", compressed("mxfp8-quantized"), lambda p: fp8(p, "U8", ()), 8, None),
    ("bitsandbytes-nf4", BNB, lambda p: bitsandbytes(p, nested=False), 4, None),
    ("bitsandbytes-nf4-nested", BNB, lambda p: bitsandbytes(p, nested=True), 4, None),
    ("bitsandbytes-fp4-long", BNB, lambda p: bitsandbytes(p, nested=False, kind="fp4", block=4096), 4, None),
    ("bitsandbytes-8", BNB, whole_bytes, 8, T.Q8_0),
]


@pytest.mark.parametrize(
    ("config", "pack", "bits", "type"), [row[1:] for row in LAYOUTS], ids=[row[0] for row in LAYOUTS]
)
def test_the_file_has_the_numbers_of_the_source(
    config: dict[str, Any], pack: Pack, bits: int, type: QuantType | None, tmp_path: Path
) -> None:
    source = Source(config, pack, bits=bits, symmetric=True)
    level = "F32" if type is None else "Q8_0"
    plan, found = written(source.folder(), level, tmp_path / "m.gguf")
    clause = "; ".join(clauses(plan, types_of(plan, level)))
    assert ("weights are made of" in clause) is (type is None), clause
    for name, packer in source.packers.items():
        stored, blocks = found[name]
        assert stored is (type or T.F32)
        values = blocks if type is None else dequantize(blocks, type, packer.columns)
        if (scale := name.replace("weight", "scale")) in found:
            values = values * found[scale][1]
        np.testing.assert_allclose(values, turned(name, packer.told), rtol=1e-6, atol=0)  # type: ignore[attr-defined]


def changed(source: Source, end: str, tensor: tuple[str, tuple[int, ...], bytes] | None) -> Tensors:
    """The tensors; the first whose name ends so is another one, or missing."""
    name = next(name for name in source.tensors if name.endswith(end))
    rest = {key: value for key, value in source.tensors.items() if key != name}
    return rest | ({name: tensor} if tensor else {})


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (b"[]", "no description"),
        (b"{", "no description"),
        (b"[" * 9000, "no description"),
        (b"{}", "no shape"),
        (b'{"shape": [4, -4], "blocksize": 64}', "no shape"),
        (b'{"shape": [256, 256]}', "size of its blocks"),
        (b'{"shape": [256, 512], "blocksize": 64}', "do not fit"),
        (b'{"shape": [256, 256], "blocksize": 32, "nested_blocksize": 256, "nested_offset": 0.5}', "do not fit"),
        (b'{"shape": [256, 256], "blocksize": 64, "nested_blocksize": 256}', "how its scales are packed"),
    ],
    ids=lambda value: ascii(value)[:48] if isinstance(value, bytes) else "",
)
def test_a_state_that_describes_other_weights_is_refused(state: bytes, words: str) -> None:
    source = Source(BNB, lambda p: bitsandbytes(p, nested=True), bits=4, symmetric=True)
    told_state = raw(np.frombuffer(state, np.uint8))
    tensors = changed(source, "q_proj.weight.quant_state.bitsandbytes__nf4", told_state)
    with pytest.raises(MalformedFile, match=words):
        plan_model(source.folder(tensors))


@pytest.mark.parametrize("end", ["q_proj.weight.absmax", "q_proj.weight.quant_map", "q_proj.weight.nested_quant_map"])
def test_a_table_that_is_missing_is_refused(end: str) -> None:
    source = Source(BNB, lambda p: bitsandbytes(p, nested=True), bits=4, symmetric=True)
    with pytest.raises(MalformedFile, match="do not fit each other"):
        plan_model(source.folder(changed(source, end, None)))


@pytest.mark.parametrize(
    ("config", "pack", "end", "wrong"),
    [
        (of_mlx("mxfp4", 32, 4), lambda p: mxfp4(p, "weight", "scales", words=True), "scales", b"\xff"),
        (of_mlx("nvfp4", 16, 4), nvfp4, "scales", b"\x7f"),
        (of_mlx("mxfp8", 32, 8), lambda p: fp8(p, "U8", (), words=True), "scales", b"\xff"),
        (BNB, lambda p: bitsandbytes(p, nested=False), "weight.absmax", b"\x00\x00\xc0\x7f"),
        (BNB, whole_bytes, "SCB", b"\x00\x00\x80\x7f"),
        (MODELOPT, lambda p: nvfp4(p, "weight_scale_2"), "weight_scale_2", b"\x00\x00\xc0\x7f"),
    ],
    ids=["mxfp4", "nvfp4", "mxfp8", "nf4", "8", "nvfp4-whole"],
)
def test_scales_that_are_no_numbers_are_refused(
    config: dict[str, Any], pack: Pack, end: str, wrong: bytes, tmp_path: Path
) -> None:
    source = Source(config, pack, bits=8 if pack is whole_bytes else 4, symmetric=True)
    before = next(tensor for name, tensor in source.tensors.items() if name.endswith(end))
    tensors = changed(source, end, (*before[:2], wrong + before[2][len(wrong) :]))
    with pytest.raises(BadValues, match=r"no number|NaN|not finite"):
        written(source.folder(tensors), "Q8_0", tmp_path / "m.gguf")


def test_auto_round_that_mixes_numbers_of_bits_in_words_of_four_is_refused() -> None:
    more = {"bits": 4, "sym": True, "extra_config": {"model.layers.0.mlp.up_proj": {"bits": 8}}}
    config = {"quant_method": "auto-round", "packing_format": "auto_round:auto_awq", **more}
    source = Source({"quantization_config": config}, whole_bytes, bits=8, symmetric=True)
    with pytest.raises(UnsupportedModel, match="extra_config"):
        plan_model(source.folder())


@pytest.mark.parametrize(
    ("mode", "size", "bits"), [("mxfp4", 32, 4), ("nvfp4", 16, 4), ("nvfp4-scaled", 16, 4), ("mxfp8", 32, 8)]
)
def test_mlx_reads_the_same_values(mode: str, size: int, bits: int) -> None:
    mx = pytest.importorskip("mlx.core", reason="the package mlx is not installed")
    packer = Packer(8, 256, 4, True)
    pack = {"mxfp4": lambda p: mxfp4(p, "weight", "scales", words=True), "nvfp4": nvfp4}
    pack["nvfp4-scaled"] = scaled_nvfp4
    tensors = pack.get(mode, lambda p: fp8(p, "U8", (), words=True))(packer)
    words = mx.array(np.frombuffer(tensors["weight"][2], "<u4").reshape(tensors["weight"][1]))
    scales = mx.array(np.frombuffer(tensors["scales"][2], np.uint8).reshape(tensors["scales"][1]))
    mode, _, scaled = mode.partition("-")
    whole = mx.array(3.5) if scaled else None
    theirs = mx.dequantize(words, scales, None, size, bits, mode, global_scale=whole).astype(mx.float32)
    np.testing.assert_allclose(packer.told, np.array(theirs), rtol=5e-3)  # type: ignore[attr-defined]


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_means_the_same_values(kind: str, nested: bool, tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="the package bitsandbytes is not installed")
    import torch

    wanted = {}

    def pack(p: Packer) -> Tensors:
        matrix = torch.tensor(RNG.standard_normal((p.rows, p.columns)).astype(np.float32))
        codes, state = functional.quantize_4bit(matrix, blocksize=64, quant_type=kind, compress_statistics=nested)
        told(p, functional.dequantize_4bit(codes, state).numpy())
        wanted[id(p)] = p
        parts = {f"weight.{name}": raw(tensor.numpy()) for name, tensor in state.as_dict(packed=True).items()}
        return {"weight": raw(codes.numpy()), **parts}

    source = Source(BNB, pack, bits=4, symmetric=True)
    _, found = written(source.folder(), "F32", tmp_path / "m.gguf")
    for name, packer in source.packers.items():
        np.testing.assert_allclose(found[name][1], turned(name, packer.told), rtol=1e-5, atol=1e-7)  # type: ignore[attr-defined]
