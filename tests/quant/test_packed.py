"""Models that are quantized already: their codes are in the file, to the bit, and smaller levels have their values.

Each layout is packed here as its definition says; marked tests compare with the packages that write it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant import dequantize, quantize
from quant.convert.planning import plan_model
from quant.errors import BadValues, MalformedFile, UnsupportedModel
from quant.kernels.blocks import unpack
from quant.levels.budget import types_of
from quant.levels.taken import clauses
from quant.stream.packed.bits import unpack_columns, unpack_dense, unpack_interleaved, unpack_words
from quant.stream.pipeline import Conversion
from quant.types import QuantType
from tests.converting import Out, Pieces
from tests.quant.packed_sources import GROUP, RNG, Packer, Source, Tensors, dense, raw, turned, written
from tests.quant.support import bf16


def gptq(p: Packer, added: int = 1, indexed: bool = True, order: np.ndarray | None = None) -> Tensors:
    index = np.arange(p.columns, dtype="<i4") // (p.columns // p.groups) if order is None else order
    zeros = (p.zeros.T - added).astype(np.uint8)
    tensors = {
        "qweight": raw(dense(p.codes, p.bits).T),
        "qzeros": raw(dense(zeros, p.bits)),
        "scales": raw(p.scales.T),
    }
    return tensors | ({"g_idx": raw(index)} if indexed else {})


def awq(p: Packer) -> Tensors:
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    codes, zeros = (each.T.astype(np.uint8).reshape(-1, p.rows // 8, 8)[..., order] for each in (p.codes, p.zeros))
    words, zero_words = (dense(each.reshape(len(each), -1), 4) for each in (codes, zeros))
    return {"qweight": raw(words), "qzeros": raw(zero_words), "scales": raw(p.scales.T)}


def gemv(p: Packer) -> Tensors:
    """Rows first, with room for more groups at the end of each row's zeros and scales."""
    width = -(-p.groups // 32) * 4
    zeros, scales = np.zeros((p.rows, width * 8), np.uint8), np.zeros((p.rows, width * 8), np.float16)
    zeros[:, : p.groups], scales[:, : p.groups] = p.zeros, p.scales
    return {"qweight": raw(dense(p.codes, 4)), "qzeros": raw(dense(zeros, 4)), "scales": raw(scales)}


def compressed(p: Packer) -> Tensors:
    symmetric = (p.zeros == 1 << (p.bits - 1)).all()
    tensors = {
        "weight_packed": raw(dense(p.codes, p.bits)),
        "weight_scale": raw(bf16(p.scales.astype(np.float32))),
        "weight_shape": raw(np.array([p.rows, p.columns], "<i8")),
    }
    p.scales = (bf16(p.scales.astype(np.float32)).astype(np.uint32) << 16).view(np.float32)  # type: ignore[assignment]
    return tensors | ({} if symmetric else {"weight_zero_point": raw(dense(p.zeros.T.astype(np.uint8), p.bits).T)})


def compressed_whole(p: Packer) -> Tensors:
    return {"weight": raw((p.codes.astype(np.int16) - 128).astype(np.int8)), "weight_scale": raw(p.scales)}


def mlx(p: Packer) -> Tensors:
    return {"weight": raw(dense(p.codes, p.bits).view("<u4")), "scales": raw(p.scales), "biases": raw(p.bias)}


def scheme(form: str, bits: int, symmetric: bool, strategy: str = "group") -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy}
    weights |= {"group_size": GROUP} if strategy == "group" else {}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups, "ignore": ["lm_head"]}


GPTQ = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False}}
AWQ = {"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}}
GEMV = {"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemv", "group_size": GROUP}}
MLX = {"quantization": {"group_size": GROUP, "bits": 4}, "quantization_config": {"group_size": GROUP, "bits": 4}}
T = QuantType


def of_gptq(**more: Any) -> dict[str, Any]:
    return {"quantization_config": {**GPTQ["quantization_config"], **more}}


def of_mlx(bits: int) -> dict[str, Any]:
    return {"quantization": {"group_size": GROUP, "bits": bits}}


# Layout, the configuration, who packs it, how; and the type that holds the codes.
EXACT: list[tuple[str, dict[str, Any], Callable[[Packer], Tensors], dict[str, Any], QuantType]] = [
    ("gptq", GPTQ, gptq, {"bits": 4, "symmetric": True}, T.Q4_0),
    ("gptq-v2", of_gptq(checkpoint_format="gptq_v2"), lambda p: gptq(p, 0), {"bits": 4, "symmetric": True}, T.Q4_0),
    ("gptq-trivial-order", of_gptq(desc_act=True), gptq, {"bits": 4, "symmetric": True}, T.Q4_0),
    ("gptq-no-index", GPTQ, lambda p: gptq(p, indexed=False), {"bits": 4, "symmetric": True}, T.Q4_0),
    ("gptq-asymmetric", of_gptq(sym=False), gptq, {"bits": 4, "symmetric": False}, T.Q4_1),
    ("gptq-8", of_gptq(bits=8), gptq, {"bits": 8, "symmetric": True}, T.Q8_0),
    ("gptq-3", of_gptq(bits=3), gptq, {"bits": 3, "symmetric": True}, T.Q4_0),
    ("gptq-channel", of_gptq(group_size=-1), gptq, {"bits": 4, "symmetric": True, "groups": 1}, T.Q4_0),
    ("awq", AWQ, awq, {"bits": 4, "symmetric": False}, T.Q4_1),
    ("awq-gemv", GEMV, gemv, {"bits": 4, "symmetric": False}, T.Q4_1),
    (
        "gptq-rules",
        of_gptq(bits=8, dynamic={"+:(a+)+$": {"bits": 4, "group_size": 32}, "-:lm_head": {}}),
        gptq,
        {"bits": 4, "symmetric": True},
        T.Q4_0,
    ),
    (
        "compressed",
        {"quantization_config": scheme("pack-quantized", 4, True)},
        compressed,
        {"bits": 4, "symmetric": True},
        T.Q4_0,
    ),
    (
        "compressed-asymmetric",
        {"quantization_config": scheme("pack-quantized", 4, False)},
        compressed,
        {"bits": 4, "symmetric": False},
        T.Q4_1,
    ),
    (
        "compressed-5",
        {"quantization_config": scheme("pack-quantized", 5, True)},
        compressed,
        {"bits": 5, "symmetric": True},
        T.Q5_0,
    ),
    (
        "compressed-whole",
        {"quantization_config": scheme("int-quantized", 8, True, "channel")},
        compressed_whole,
        {"bits": 8, "symmetric": True, "groups": 1},
        T.Q8_0,
    ),
    ("mlx", MLX, mlx, {"bits": 4, "symmetric": True}, T.Q4_1),
    ("mlx-5", of_mlx(5), mlx, {"bits": 5, "symmetric": True}, T.Q5_1),
]


@pytest.mark.parametrize(
    ("config", "pack", "how", "type"),
    [pytest.param(*row[1:], id=row[0], marks=pytest.mark.slow if index % 4 else ()) for index, row in enumerate(EXACT)],
)
def test_codes_are_taken_over_as_they_are(
    config: dict[str, Any], pack: Callable[[Packer], Tensors], how: dict[str, Any], type: QuantType, tmp_path: Path
) -> None:
    source = Source(config, pack, **how)
    plan, found = written(source.folder(), "Q8_0", tmp_path / "m.gguf")
    (clause,) = clauses(plan, types_of(plan, "Q8_0"))
    assert clause.endswith(f" are taken over as they are ({type.name})")
    for name, packer in source.packers.items():
        stored, blocks = found[name]
        assert stored is type
        parts = unpack(type, blocks.reshape(-1, type.block_bytes))
        levels = parts.levels.reshape(packer.codes.shape)
        shift = {T.Q4_0: 8, T.Q5_0: 16}.get(type, 0)
        wanted = packer.codes.astype(np.int16)
        if type is T.Q8_0:
            levels, wanted = levels.view(np.int8), wanted - 128
        elif shift:
            wanted += shift - (1 << (packer.bits - 1))
        np.testing.assert_array_equal(levels, turned(name, wanted))
        values = turned(name, packer.affine if pack is mlx else packer.values)
        rounded = np.abs(values).max() * 2**-10 if type in (T.Q4_1, T.Q5_1) else 0
        np.testing.assert_allclose(dequantize(blocks, type, packer.columns), values, rtol=1e-3, atol=rounded)
    assert found["token_embd.weight"][0] is T.Q8_0


NOT_EXACT = [
    ("gptq-out-of-order", of_gptq(desc_act=True), {"bits": 4, "symmetric": True}),
    ("mlx-8", of_mlx(8), {"bits": 8, "symmetric": True}),
    ("gptq-asymmetric-8", of_gptq(bits=8, sym=False), {"bits": 8, "symmetric": False}),
]


def test_matrices_of_several_numbers_of_bits_are_told_apart_by_their_shapes(tmp_path: Path) -> None:
    four = Source(GPTQ, gptq, bits=4, symmetric=True)
    eight = Source(GPTQ, gptq, bits=8, symmetric=True)
    down = lambda name: "down_proj" in name  # noqa: E731
    tensors = {name: each for name, each in four.tensors.items() if not down(name)}
    tensors |= {name: each for name, each in eight.tensors.items() if down(name)}
    for way in (
        of_gptq(dynamic={r"+:.*\.down_proj": {"bits": 8}}),
        {
            "quantization_config": {
                "quant_method": "auto-round",
                "bits": 4,
                "sym": True,
                "packing_format": "auto_round:auto_gptq",
                "extra_config": {"model.layers.0.mlp.down_proj": {"bits": 8}, "lm_head": {"bits": 16}},
            }
        },
    ):
        plan, found = written(four.folder(tensors, **way), "Q8_0", tmp_path / "m.gguf")
        assert len(clauses(plan, types_of(plan, "Q8_0"))) == 2
        for name in four.packers:
            type, blocks = found[name]
            source = eight if "ffn_down" in name else four
            assert type is (T.Q8_0 if source is eight else T.Q4_0)
            values = turned(name, source.packers[name].values)
            np.testing.assert_allclose(dequantize(blocks, type, values.shape[1]), values, rtol=1e-3)


def test_rules_that_shapes_contradict_are_refused() -> None:
    source = Source(of_gptq(dynamic={"+:.*": {"bits": 8}}), gptq, bits=4, symmetric=True)
    odd = changed(source, "qzeros", lambda tensor: ("I32", (tensor[1][0], 7), tensor[2][: tensor[1][0] * 28]))
    with pytest.raises(MalformedFile, match="do not fit each other"):
        plan_model(source.folder(odd))


@pytest.mark.parametrize(("config", "how"), [row[1:] for row in NOT_EXACT], ids=[row[0] for row in NOT_EXACT])
def test_codes_that_no_type_holds_become_their_values(
    config: dict[str, Any], how: dict[str, Any], tmp_path: Path
) -> None:
    orders: dict[int, np.ndarray] = {}

    def pack(packer: Packer) -> Tensors:
        if "quantization" in config:
            return mlx(packer)
        if not config["quantization_config"]["desc_act"]:
            return gptq(packer)
        order = RNG.permutation(np.arange(packer.columns, dtype="<i4") // GROUP).astype("<i4")
        orders[id(packer)] = order
        return gptq(packer, order=order)

    source = Source(config, pack, **how)
    plan, found = written(source.folder(), "F32", tmp_path / "m.gguf")
    (clause,) = clauses(plan, types_of(plan, "F32"))
    assert clause.startswith("weights are made of ")
    for name, packer in source.packers.items():
        values = packer.affine if "quantization" in config else packer.values
        if (order := orders.get(id(packer))) is not None:
            values = (packer.codes - packer.zeros[:, order].astype(np.float32)) * packer.scales[:, order]
        np.testing.assert_array_equal(found[name][1], turned(name, values.astype(np.float32)))


def test_a_smaller_level_is_made_of_the_values(tmp_path: Path) -> None:
    source = Source(GPTQ, gptq, bits=4, symmetric=True)
    _, found = written(source.folder(), "Q3_K_S", tmp_path / "m.gguf")
    for name, packer in source.packers.items():
        assert found[name][0] is T.Q3_K
        wanted = quantize(turned(name, packer.values).astype(np.float32), T.Q3_K)
        np.testing.assert_array_equal(found[name][1], wanted)


def test_a_pass_goes_on_from_every_mark_though_all_scales_lie_behind_the_codes(tmp_path: Path) -> None:
    source = Source(AWQ, awq, bits=4, symmetric=False).folder()
    conversion, path = Conversion(plan_model(source), "Q8_0"), tmp_path / "m.gguf"

    def run(file: Any, start: Any = None) -> Out:
        out = Out(file)
        conversion.write(
            lambda shard, offset, _: Pieces(shard, source.stream(shard), offset), out, start=start, peek=source.read
        )
        return out

    with path.open("wb") as file:
        marks = run(file).marks
    whole = path.read_bytes()
    assert len(marks) > 14, "there is a mark behind every packed matrix"
    for mark, length in marks:
        with (tmp_path / "again.gguf").open("wb+") as file:
            file.write(whole[:length])
            run(file, mark)
        assert (tmp_path / "again.gguf").read_bytes() == whole


def test_scales_that_change_while_they_are_read_are_told(tmp_path: Path) -> None:
    source = Source(AWQ, awq, bits=4, symmetric=False).folder()
    other = Source(AWQ, awq, bits=4, symmetric=False).folder()
    with (tmp_path / "m.gguf").open("wb") as file, pytest.raises(MalformedFile, match="changed while it was read"):
        Conversion(plan_model(source), "Q8_0").write(
            lambda shard, offset, _: Pieces(shard, source.stream(shard), offset), Out(file), peek=other.read
        )


def changed(source: Source, end: str, change: Callable[[tuple[str, tuple[int, ...], bytes]], Any]) -> Tensors:
    """The tensors, of which the first whose name ends so is changed, or taken away by None."""
    name = next(name for name in source.tensors if name.endswith(end))
    new = change(source.tensors[name])
    return {key: new if key == name else value for key, value in source.tensors.items() if key != name or new}


def test_companions_that_do_not_fit_are_refused_by_name() -> None:
    source = Source(GPTQ, gptq, bits=4, symmetric=True)
    for end, change in (
        ("scales", lambda tensor: None),
        ("qzeros", lambda tensor: None),
        ("scales", lambda tensor: (tensor[0], (tensor[1][0] // 2, tensor[1][1]), tensor[2][: len(tensor[2]) // 2])),
        ("qzeros", lambda tensor: ("F32", *tensor[1:])),
        ("g_idx", lambda tensor: ("I32", (tensor[1][0] // 2,), tensor[2][: len(tensor[2]) // 2])),
    ):
        with pytest.raises(MalformedFile, match=r"do not fit each other|config\.json"):
            plan_model(source.folder(changed(source, end, change)))


@pytest.mark.parametrize("wrong", [np.float16("nan"), np.float16("inf")])
def test_scales_that_are_no_numbers_are_refused(wrong: np.float16, tmp_path: Path) -> None:
    source = Source(MLX, mlx, bits=4, symmetric=True)
    tensors = changed(source, "scales", lambda tensor: (*tensor[:2], wrong.tobytes() + tensor[2][2:]))
    with pytest.raises(BadValues, match=r"no number|NaN"):
        written(source.folder(tensors), "Q8_0", tmp_path / "m.gguf")


def test_zero_points_that_contradict_the_configuration_are_refused(tmp_path: Path) -> None:
    source = Source(GPTQ, gptq, bits=4, symmetric=False)
    with pytest.raises(BadValues, match="out of its range"):
        written(source.folder(), "Q8_0", tmp_path / "m.gguf")


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "aqlm"}},
        {"quantization_config": {"quant_method": ["gptq"]}},
        of_gptq(bits="4"),
        of_gptq(checkpoint_format="gptq_p"),
        of_gptq(dynamic={"-:lm_head": {}, "+:.*down.*": 8}),
        of_gptq(dynamic=["down"]),
        {"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemv"}},
        {"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemv", "group_size": 0}},
        {"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemv_fast"}},
        {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}},
        {"quantization_config": scheme("sparse-24-bitmask", 4, True)},
        {"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}},
        {"quantization": {"group_size": 0, "bits": 4}},
    ],
    ids=lambda config: json.dumps(config)[:60],
)
def test_what_is_not_known_is_refused(config: dict[str, Any]) -> None:
    source = Source(config, mlx if "quantization" in config else gptq, bits=4, symmetric=True)
    with pytest.raises((UnsupportedModel, MalformedFile), match=r"already quantized|do not fit"):
        plan_model(source.folder())


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
def test_codes_of_any_length_come_apart(bits: int) -> None:
    codes = RNG.integers(0, 1 << bits, (7, 96), np.uint8)
    np.testing.assert_array_equal(unpack_dense(dense(codes, bits), bits, 96), codes)
    per = 32 // bits
    words = np.zeros((7, -(-96 // per)), np.uint32)
    for column in range(96):
        words[:, column // per] |= codes[:, column].astype(np.uint32) << (column % per * bits)
    np.testing.assert_array_equal(unpack_words(words.view(np.int32), bits, 96), codes)


@pytest.mark.parametrize(("bits", "rows", "columns"), [(4, 256, 96), (8, 40, 32), (3, 20, 64), (2, 144, 16), (4, 8, 8)])
def test_codes_that_lie_along_the_columns_come_apart(bits: int, rows: int, columns: int) -> None:
    codes = RNG.integers(0, 1 << bits, (rows, columns), np.uint8)
    words = dense(codes, bits).T
    np.testing.assert_array_equal(unpack_columns(words, bits, columns, 0, rows), codes)
    if rows > 128:
        np.testing.assert_array_equal(unpack_columns(words, bits, columns, 128, rows), codes[128:])


@pytest.mark.parametrize(("rows", "columns"), [(256, 96), (384, 20), (136, 16), (8, 8)])
def test_codes_in_the_order_of_awq_come_apart(rows: int, columns: int) -> None:
    packer = Packer(rows, columns, 4, True, groups=1)
    _, shape, data = awq(packer)["qweight"]
    words = np.frombuffer(data, "<i4").reshape(shape)
    np.testing.assert_array_equal(unpack_interleaved(words, 0, rows), packer.codes)
    np.testing.assert_array_equal(unpack_interleaved(words, 128, rows), packer.codes[128:])


def test_mlx_means_the_same_values() -> None:
    mx = pytest.importorskip("mlx.core", reason="the package mlx is not installed")
    source = Source(MLX, mlx, bits=4, symmetric=True)
    for name, packer in list(source.packers.items())[:3]:
        words = dense(packer.codes, 4).view("<u4")
        words, scales, bias = (mx.array(each) for each in (words, packer.scales, packer.bias))
        theirs = np.array(mx.dequantize(words, scales, bias, GROUP, 4).astype(mx.float32))
        np.testing.assert_allclose(packer.affine, theirs, atol=2e-3, err_msg=name)


@pytest.mark.oracle
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_compressed_tensors_means_the_same_values(symmetric: bool, bits: int) -> None:
    import torch

    reason = "the package compressed-tensors is not installed"
    theirs = pytest.importorskip("compressed_tensors.compressors", reason=reason).PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    packer = Packer(64, 96, bits, symmetric)
    types = {"I32": np.int32, "I64": np.int64}
    state = {
        name: torch.tensor(packer.scales if dtype == "BF16" else np.frombuffer(data, types[dtype]).reshape(shape))
        for name, (dtype, shape, data) in compressed(packer).items()
    }
    args = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="group", group_size=GROUP)
    found = theirs.decompress(state, QuantizationScheme(targets=["Linear"], weights=args))["weight"]
    np.testing.assert_allclose(packer.values, found.float().numpy(), rtol=1e-6)
