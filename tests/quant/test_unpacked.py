"""Models of HQQ and torchao: their codes are in the file where a type holds them, else their values.

Each layout is written here as its definition says; marked tests compare with the packages that write it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant import dequantize
from quant.convert.planning import plan_model
from quant.errors import BadValues, MalformedFile, UnsupportedModel
from quant.kernels.blocks import unpack
from quant.levels.budget import types_of
from quant.levels.taken import clauses
from quant.types import QuantType
from tests.quant.packed_sources import RNG, Packer, Source, Tensors, raw, turned, written
from tests.quant.test_packed_floats import e4m3, small, told

T = QuantType
HQQ = {"quantization_config": {"quant_method": "hqq", "quant_config": {}, "skip_modules": ["lm_head"]}}
PACKINGS = {
    8: ("8bit_u8", 1, 8),
    5: ("8bit_u8", 1, 8),
    4: ("4bit_u8", 2, 4),
    3: ("3bit_32", 10, 3),
    2: ("2bit_u8", 4, 2),
}


def torchao(bits: int, mapping: str = "SYMMETRIC", kind: str = "IntxWeightOnlyConfig") -> dict[str, Any]:
    data = {"weight_dtype": {"_type": "torch.dtype", "_data": f"int{bits}"}}
    data["mapping_type"] = {"_type": "MappingType", "_data": mapping}
    quant_type = {"default": {"_type": kind, "_version": 2, "_data": data}}
    return {"quantization_config": {"quant_method": "torchao", "quant_type": quant_type}}


def hqq(p: Packer, axis: int = 1) -> Tensors:
    """The codes of a matrix in groups, along its rows or across them, with zeros that are no whole numbers."""
    packing, per, width = PACKINGS[p.bits]
    size = p.columns // p.groups
    count = p.codes.size // size
    lines = p.codes.reshape((count, size) if axis else (size, count)).astype(np.int32)
    zeros = (RNG.random(count) * ((1 << p.bits) - 1)).astype(np.float16)
    scales = p.scales.reshape(-1)
    along = [each.astype(np.float32)[:, None] if axis else each.astype(np.float32) for each in (zeros, scales)]
    told(p, ((lines - along[0]) * along[1]).reshape(p.codes.shape))
    apart = -(-len(lines) // per)
    padded = np.zeros((apart * per, lines.shape[1]), np.int32)
    padded[: len(lines)] = lines
    words = sum(padded[k * apart : (k + 1) * apart] << width * (per - 1 - k) for k in range(per))
    one = (count, 1) if axis else (1, count)
    numbers = {"nbits": p.bits, "group_size": size, "axis": axis}
    flags = dict.fromkeys(("view_as_float", "encoded_state_dict", "channel_wise", "optimize", "round_zero"), 1)
    return {
        "W_q": raw(np.asarray(words).astype("<i4" if per == 10 else np.uint8)),
        "scale": raw(scales.reshape(one)),
        "zero": raw(zeros.reshape(one)),
        "shape": raw(np.array(p.codes.shape, "<i8")),
        "packing": raw(np.frombuffer(packing.encode(), np.uint8)),
        "compute_dtype": raw(np.frombuffer(b"torch.float16", np.uint8)),
        **{name: raw(np.array(number, "<i4")) for name, number in numbers.items()},
        **{name: raw(np.array(flag, np.uint8)) for name, flag in flags.items()},
    }


def ao(p: Packer) -> Tensors:
    middle = 1 << (p.bits - 1)
    told(p, p.values)
    return {
        "_weight_qdata": raw((p.codes.astype(np.int16) - middle).astype(np.int8)),
        "_weight_scale": raw(p.scales),
        "_weight_zero_point": raw((p.zeros - middle).astype(np.int8)),
    }


def ao_fp8(p: Packer) -> Tensors:
    codes = RNG.integers(0, 127, (p.rows, p.columns), np.uint8)
    scales = (RNG.random((p.rows, 1)) / 64 + 1 / 256).astype(np.float32)
    told(p, e4m3(codes) * scales)
    return {"_weight_qdata": small(codes), "_weight_scale": raw(scales)}


Pack = Callable[[Packer], Tensors]
# Layout, configuration, who packs it, bits, whether zeros are the middle, and the type of the codes; None: no type.
LAYOUTS: list[tuple[str, dict[str, Any], Pack, int, bool, QuantType | None]] = [
    ("hqq-4", HQQ, hqq, 4, True, T.Q4_1),
    ("hqq-5", HQQ, hqq, 5, True, T.Q5_1),
    ("hqq-3", HQQ, hqq, 3, True, T.Q4_1),
    ("hqq-2", HQQ, hqq, 2, True, T.Q4_1),
    ("hqq-8", HQQ, hqq, 8, True, None),
    ("hqq-across", HQQ, lambda p: hqq(p, 0), 4, True, None),
    ("torchao-4", torchao(4), ao, 4, True, T.Q4_0),
    ("torchao-4-asymmetric", torchao(4, "ASYMMETRIC"), ao, 4, False, T.Q5_0),
    ("torchao-8", torchao(8), ao, 8, True, T.Q8_0),
    ("torchao-8-asymmetric", torchao(8, "ASYMMETRIC"), ao, 8, False, None),
    ("torchao-fp8", torchao(8, kind="Float8WeightOnlyConfig"), ao_fp8, 8, True, None),
]


@pytest.mark.parametrize(
    ("config", "pack", "bits", "symmetric", "type"),
    [
        pytest.param(*row[1:], id=row[0], marks=pytest.mark.slow if index % 3 else ())
        for index, row in enumerate(LAYOUTS)
    ],
)
def test_the_file_has_the_codes_or_the_numbers_of_the_source(
    config: dict[str, Any], pack: Pack, bits: int, symmetric: bool, type: QuantType | None, tmp_path: Path
) -> None:
    source = Source(config, pack, bits=bits, symmetric=symmetric)
    level = "F32" if type is None else "Q8_0"
    plan, found = written(source.folder(), level, tmp_path / "m.gguf")
    (clause,) = clauses(plan, types_of(plan, level))
    assert clause.startswith("weights are made of" if type is None else f"the {bits}-bit codes of")
    for name, packer in source.packers.items():
        stored, blocks = found[name]
        assert stored is (type or T.F32)
        values = turned(name, packer.told)  # type: ignore[attr-defined]
        if type is None:
            np.testing.assert_allclose(blocks, values, rtol=1e-5, atol=1e-6)
            continue
        rounded = np.abs(values).max() * 2**-10 if type in (T.Q4_1, T.Q5_1) else 0
        np.testing.assert_allclose(dequantize(blocks, type, packer.columns), values, rtol=1e-3, atol=rounded)
        if type in (T.Q4_1, T.Q5_1):
            levels = unpack(type, blocks.reshape(-1, type.block_bytes)).levels
            np.testing.assert_array_equal(levels.reshape(packer.codes.shape), turned(name, packer.codes))


def changed(source: Source, end: str, tensor: tuple[str, tuple[int, ...], bytes] | None) -> Tensors:
    """The tensors; the first whose name ends so is another one, or missing."""
    name = next(name for name in source.tensors if name.endswith(end))
    rest = {key: value for key, value in source.tensors.items() if key != name}
    return rest | ({name: tensor} if tensor else {})


@pytest.mark.parametrize(
    ("end", "tensor", "words"),
    [
        ("q_proj.shape", None, "without the numbers about it"),
        ("q_proj.axis", raw(np.array([1, 1], "<i4")), "without the numbers about it"),
        ("q_proj.shape", raw(np.array([256, 512], "<i8")), "do not fit"),
        ("q_proj.shape", raw(np.array([-256, -256], "<i8")), "do not fit"),
        ("q_proj.group_size", raw(np.array(0, "<i4")), "do not fit"),
        ("q_proj.axis", raw(np.array(2, "<i4")), "by HQQ with 4 bits, axis 2"),
        ("q_proj.packing", raw(np.frombuffer(b"9bit", np.uint8)), "by HQQ with 4 bits"),
        ("q_proj.nbits", raw(np.array(7, "<i4")), "by HQQ with 7 bits"),
        ("q_proj.scale", None, "do not fit"),
        ("q_proj.zero", raw(np.zeros((1, 7), np.float16)), "do not fit"),
    ],
)
def test_numbers_that_tell_of_other_codes_are_refused(
    end: str, tensor: tuple[str, tuple[int, ...], bytes] | None, words: str
) -> None:
    source = Source(HQQ, hqq, bits=4, symmetric=True)
    with pytest.raises((MalformedFile, UnsupportedModel), match=words):
        plan_model(source.folder(changed(source, end, tensor)))


@pytest.mark.parametrize("kind", ["Int4WeightOnlyConfig"])
def test_codes_in_an_order_of_a_gpu_are_refused_by_name(kind: str) -> None:
    source = Source(torchao(4, kind=kind), ao, bits=4, symmetric=True)
    with pytest.raises(UnsupportedModel, match=f"by torchao as '{kind}'"):
        plan_model(source.folder())


def test_zeros_that_the_configuration_denies_are_refused(tmp_path: Path) -> None:
    source = Source(torchao(4), ao, bits=4, symmetric=False)
    with pytest.raises(BadValues, match="out of its range"):
        written(source.folder(), "Q8_0", tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("config", "pack", "end"), [(HQQ, hqq, "q_proj.zero"), (torchao(4), ao, "q_proj._weight_scale")]
)
def test_scales_and_zeros_that_are_no_numbers_are_refused(
    config: dict[str, Any], pack: Pack, end: str, tmp_path: Path
) -> None:
    source = Source(config, pack, bits=4, symmetric=True)
    dtype, shape, data = next(tensor for name, tensor in source.tensors.items() if name.endswith(end))
    wrong = changed(source, end, (dtype, shape, np.float16("nan").tobytes() + data[2:]))
    with pytest.raises(BadValues, match="no number"):
        written(source.folder(wrong), "Q8_0", tmp_path / "m.gguf")


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # hqq is compiled by torch.compile as it is imported
@pytest.mark.parametrize(("bits", "axis"), [(8, 1), (4, 1), (3, 1), (2, 1), (4, 0), (3, 0)])
def test_hqq_means_the_same_values(bits: int, axis: int, tmp_path: Path) -> None:
    theirs = pytest.importorskip("hqq.core.quantize", reason="the package hqq is not installed")
    import torch

    def pack(p: Packer) -> Tensors:
        linear = torch.nn.Linear(p.columns, p.rows, bias=False)
        config = theirs.BaseQuantizeConfig(nbits=bits, group_size=64, axis=axis)
        layer = theirs.HQQLinear(linear, config, compute_dtype=torch.float32, device="cpu")
        told(p, layer.dequantize().numpy())
        return {name: raw(each.numpy()) for name, each in layer.state_dict().items() if each is not None}

    source = Source(HQQ, pack, bits=bits, symmetric=True)
    _, found = written(source.folder(), "F32", tmp_path / "m.gguf")
    for name, packer in source.packers.items():
        stored, blocks = found[name]
        values = blocks if stored is T.F32 else dequantize(blocks, stored, packer.columns)
        near = 1e-6 if stored is T.F32 else 2**-9
        np.testing.assert_allclose(values, turned(name, packer.told), atol=near)  # type: ignore[attr-defined]


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["int4", "int4-asymmetric", "int8", "fp8"])
def test_torchao_means_the_same_values(kind: str, tmp_path: Path) -> None:
    ao = pytest.importorskip("torchao.quantization", reason="the package torchao is not installed")
    import torch
    from torchao.core.config import config_to_dict
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    mapping = ao.MappingType.ASYMMETRIC if "asymmetric" in kind else ao.MappingType.SYMMETRIC
    ways = {
        "int8": lambda: ao.Int8WeightOnlyConfig(version=2),
        "fp8": ao.Float8WeightOnlyConfig,
    }
    four = lambda: ao.IntxWeightOnlyConfig(torch.int4, ao.PerGroup(32), mapping)  # noqa: E731
    how = ways.get(kind, four)()

    def pack(p: Packer) -> Tensors:
        model = torch.nn.Sequential(torch.nn.Linear(p.columns, p.rows, bias=False))
        ao.quantize_(model, how)
        told(p, model[0].weight.dequantize().float().detach().numpy())
        flat, _ = flatten_tensor_state_dict(model.state_dict())
        tensors = {}
        for name, each in flat.items():
            fp8 = each.dtype == torch.float8_e4m3fn
            tensors[name.removeprefix("0.")] = (small if fp8 else raw)(
                each.view(torch.uint8).numpy() if fp8 else each.numpy()
            )
        return tensors

    config = {"quant_method": "torchao", "quant_type": {"default": json.loads(json.dumps(config_to_dict(how)))}}
    source = Source({"quantization_config": config}, pack, bits=4, symmetric=True)
    plan, found = written(source.folder(), "F32", tmp_path / "m.gguf")
    exact = {"int4": T.Q4_0, "int4-asymmetric": T.Q5_0, "int8": T.Q8_0, "fp8": None}[kind]
    assert {tensor.published_type for tensor in plan.tensors if tensor.packing} == {exact}
    for name, packer in source.packers.items():
        stored, blocks = found[name]
        values = blocks if stored is T.F32 else dequantize(blocks, stored, packer.columns)
        np.testing.assert_allclose(values, turned(name, packer.told), rtol=1e-3, atol=1e-6)  # type: ignore[attr-defined]
