"""Models that are published in MXFP4 and FP8: what becomes of them, by the decoders of gguf and transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from quant import quantize
from quant.convert.planning import plan_model, sketch_model
from quant.errors import BadValues, MalformedFile, UnsupportedModel
from quant.gguf.header import read_file
from quant.levels.budget import mix
from quant.levels.recipes import LEVELS, assign
from quant.plan import ModelPlan
from quant.stream.packed.floats import PackedMxfp4
from quant.stream.pipeline import Conversion
from quant.types import QuantType
from tests.converting import Out, Pieces, write
from tests.quant.support import DEMO, Folder, bf16, llama_shapes, safetensors

EXPERTS, WIDTH, INNER, LAYERS, VOCABULARY = 3, 64, 96, 2, 4160
CONFIG = {
    "architectures": ["GptOssForCausalLM"],
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": VOCABULARY,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "sliding_window": 48,
    "max_position_embeddings": 512,
    "rope_theta": 150000.0,
    "swiglu_limit": 7.0,
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
}
RNG = np.random.default_rng(5)
Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]


def plain(*shape: int) -> tuple[str, tuple[int, ...], bytes]:
    return "BF16", shape, bf16(RNG.standard_normal(shape) / 8).tobytes()


def packed(name: str, rows: int, columns: int) -> Tensors:
    """Experts in MXFP4, as they are published."""
    shape = (EXPERTS, rows, columns // 32)
    scales = RNG.integers(110, 126, shape, np.uint8)
    elements = RNG.integers(0, 256, (*shape, 16), np.uint8)
    return {
        f"{name}_blocks": ("U8", (*shape, 16), elements.tobytes()),
        f"{name}_scales": ("U8", shape, scales.tobytes()),
    }


def gpt_oss() -> Tensors:
    tensors = {"model.embed_tokens.weight": plain(VOCABULARY, WIDTH), "model.norm.weight": plain(WIDTH)}
    tensors["lm_head.weight"] = plain(VOCABULARY, WIDTH)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        for part, rows, columns in (("q", 128, WIDTH), ("k", 64, WIDTH), ("v", 64, WIDTH), ("o", WIDTH, 128)):
            tensors[f"{at}self_attn.{part}_proj.weight"] = plain(rows, columns)
            tensors[f"{at}self_attn.{part}_proj.bias"] = plain(rows)
        tensors |= {f"{at}{name}.weight": plain(WIDTH) for name in ("input_layernorm", "post_attention_layernorm")}
        tensors |= {at + "self_attn.sinks": plain(4), at + "mlp.router.weight": plain(EXPERTS, WIDTH)}
        tensors |= {at + "mlp.router.bias": plain(EXPERTS)}
        tensors |= {at + "mlp.experts.gate_up_proj_bias": plain(EXPERTS, 2 * INNER)}
        tensors |= {at + "mlp.experts.down_proj_bias": plain(EXPERTS, WIDTH)}
        tensors |= packed(at + "mlp.experts.down_proj", WIDTH, INNER)
        tensors |= packed(at + "mlp.experts.gate_up_proj", 2 * INNER, WIDTH)
    return tensors


TENSORS = gpt_oss()


def folder(tensors: Tensors = TENSORS, **config: Any) -> Folder:
    """The model in two files, of which the second begins between some elements and their scales."""
    split = "model.layers.1.mlp.experts.down_proj_scales"
    names = list(tensors)
    first = {name: tensors[name] for name in names[: names.index(split)]} if split in names else tensors
    rest = {name: value for name, value in tensors.items() if name not in first}
    files = {"model-1.safetensors": first, **({"model-2.safetensors": rest} if rest else {})}
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    contents = {name: (DEMO / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    contents |= {file: safetensors(part) for file, part in files.items()}
    contents["model.safetensors.index.json"] = json.dumps(index).encode()
    return Folder(contents={**contents, "config.json": json.dumps({**CONFIG, **config}).encode()})


def decoded(name: str, tensors: Tensors = TENSORS) -> np.ndarray:
    """float32[experts, rows, columns]: what the published bytes stand for, by the format's own definition."""
    _, shape, elements = tensors[f"{name}_blocks"]
    pairs = np.frombuffer(elements, np.uint8).reshape(shape)
    codes = np.stack([pairs & 15, pairs >> 4], -1).reshape(*shape[:-1], 32)
    sizes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)[codes & 7] * np.where(codes & 8, -1, 1)
    exponents = np.frombuffer(tensors[f"{name}_scales"][2], np.uint8).reshape(shape[:-1]).astype(int) - 127
    return np.ldexp(sizes, exponents[..., None]).astype(np.float32).reshape(*shape[:2], -1)


def written(source: Folder, level: str, path: Path) -> dict[str, tuple[QuantType, np.ndarray]]:
    """Each tensor's type and its numbers, as gguf reads and decodes them."""
    write(plan_model(source), level, source.stream, path)
    return {
        tensor.name: (QuantType.by_id(int(tensor.tensor_type)), gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        for tensor in gguf.GGUFReader(path).tensors
    }


@pytest.mark.parametrize("level", ["Q8_0", "F16", "Q4_K_M"])
def test_experts_in_mxfp4_are_taken_over_without_loss(level: str, tmp_path: Path) -> None:
    found = written(folder(), level, tmp_path / "m.gguf")
    for layer in range(LAYERS):
        at = f"model.layers.{layer}.mlp.experts."
        both, down = decoded(at + "gate_up_proj"), decoded(at + "down_proj")
        for name, wanted in {"gate": both[:, ::2], "up": both[:, 1::2], "down": down}.items():
            type, values = found[f"blk.{layer}.ffn_{name}_exps.weight"]
            assert type is QuantType.MXFP4
            np.testing.assert_array_equal(values, wanted)
    assert found["blk.0.attn_q.weight"][0] is not QuantType.MXFP4


def test_a_smaller_type_is_made_of_what_the_experts_stand_for(tmp_path: Path) -> None:
    source, path = folder(), tmp_path / "m.gguf"
    write(plan_model(source), "Q2_0", source.stream, path)
    header = read_file(path)
    found = next(tensor for tensor in header.tensors if tensor.name == "blk.0.ffn_gate_exps.weight")
    wanted = quantize(decoded("model.layers.0.mlp.experts.gate_up_proj")[:, ::2], QuantType.Q2_0).tobytes()
    start = header.data_offset + found.offset
    assert path.read_bytes()[start : start + found.nbytes] == wanted


def test_levels_and_budgets_never_blow_up_what_is_small() -> None:
    plan = sketch_model(folder())
    experts = [tensor.name for tensor in plan.tensors if tensor.name.endswith("_exps.weight")]
    for level in LEVELS:
        types = assign(plan, level)
        assert all(types[name].bits_per_weight <= QuantType.MXFP4.bits_per_weight for name in experts), level
    types = mix(plan, "8bpw")
    assert {types[name] for name in experts} == {QuantType.MXFP4}


def test_a_pass_goes_on_from_every_mark(tmp_path: Path) -> None:
    """The marks lie outside of what waits for its scales, and the bytes are the same from each."""
    source, path = folder(), tmp_path / "m.gguf"
    plan = plan_model(source)
    conversion = Conversion(plan, "Q8_0")
    with path.open("wb") as file:
        out = Out(file)
        conversion.write(lambda shard, offset, _: Pieces(shard, source.stream(shard), offset), out, peek=source.read)
    whole = path.read_bytes()
    assert sum(tensor.size for tensor in plan.tensors) == sum(len(data) for _, _, data in TENSORS.values())
    assert len(out.marks) > 20
    for mark, length in out.marks[:: len(out.marks) // 6]:
        with (tmp_path / "again.gguf").open("wb+") as file:
            file.write(whole[:length])
            conversion.write(
                lambda shard, offset, _: Pieces(shard, source.stream(shard), offset),
                Out(file),
                start=mark,
                peek=source.read,
            )
        assert (tmp_path / "again.gguf").read_bytes() == whole


def test_scales_that_are_missing_do_not_fit_or_are_no_number(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.down_proj"
    without = {key: value for key, value in TENSORS.items() if key != f"{name}_scales"}
    with pytest.raises(MalformedFile, match="do not fit each other"):
        plan_model(folder(without))
    _, shape, data = TENSORS[f"{name}_scales"]
    short = {**TENSORS, f"{name}_scales": ("U8", (*shape[:-1], 1), data[: len(data) // shape[-1]])}
    with pytest.raises(MalformedFile, match="do not fit each other"):
        plan_model(folder(short))
    broken = {**TENSORS, f"{name}_scales": ("U8", shape, b"\xff" + data[1:])}
    with pytest.raises(BadValues, match="down_proj"):
        written(folder(broken), "Q8_0", tmp_path / "m.gguf")


def test_other_kinds_of_quantization_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match="aqlm"):
        plan_model(folder(quantization_config={"quant_method": "aqlm"}))
    with pytest.raises(UnsupportedModel, match="`bits` 5"):
        plan_model(folder(quantization_config={"quant_method": "gptq", "bits": 5}))
    with pytest.raises(UnsupportedModel, match="fp8"):
        plan_model(folder(quantization_config={"quant_method": "fp8", "weight_block_size": [64, 64]}))


def llama_in_fp8(dtype: str, squares: bool) -> tuple[Folder, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """A small Llama in FP8, with matrices that end within a square, and its elements and scales (float32) by name."""
    shapes = llama_shapes(2, 192, 320, 6, 2, VOCABULARY)
    tensors: Tensors = {}
    small: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, shape in shapes.items():
        if "layers" not in name or len(shape) < 2:
            tensors[name] = plain(*shape)
            continue
        codes = RNG.integers(0, 127, shape, np.uint8) | RNG.integers(0, 2, shape, np.uint8) << 7
        scales = np.array(RNG.random([-(-size // 128) for size in shape] if squares else ()), np.float32) / 256
        bits = bf16(scales.reshape(-1))
        if dtype == "BF16":
            scales = (bits.astype(np.uint32) << 16).view(np.float32).reshape(scales.shape)
        small[name] = codes, scales
        tensors[name] = "F8_E4M3", shape, codes.tobytes()
        tensors[f"{name}_scale_inv"] = dtype, scales.shape, bits.tobytes() if dtype == "BF16" else scales.tobytes()
        if not squares:
            tensors[name.replace("weight", "activation_scale")] = "BF16", (), bits[:1].tobytes()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "hidden_size": 192,
        "intermediate_size": 320,
        "head_dim": None,
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128] if squares else None},
    }
    return folder(tensors, **config), small


@pytest.mark.oracle
@pytest.mark.parametrize("squares", [True, False])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_fp8_becomes_what_torch_says_it_is(dtype: str, squares: bool, tmp_path: Path) -> None:
    import torch

    source, small = llama_in_fp8(dtype, squares)
    found = written(source, "F32", tmp_path / "m.gguf")
    names = {"mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "self_attn.v_proj": "attn_v"}
    for theirs, ours in names.items():
        codes, scales = small[f"model.layers.1.{theirs}.weight"]
        wide = torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy()
        factors = scales.repeat(128, 0)[: len(codes)].repeat(128, 1)[:, : codes.shape[1]] if squares else scales
        np.testing.assert_array_equal(found[f"blk.1.{ours}.weight"][1], wide * factors)
    assert assign(plan_model(source), "Q8_0")["blk.0.ffn_up.weight"] is QuantType.Q8_0


@pytest.mark.oracle
def test_mxfp4_becomes_what_transformers_says_it_is() -> None:
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors as theirs

    elements, scales = RNG.integers(0, 256, (7, 48), np.uint8), RNG.integers(100, 150, (7, 3), np.uint8)
    wanted = theirs(torch.tensor(elements.reshape(1, 7, 3, 16)), torch.tensor(scales[None]), dtype=torch.float32)
    np.testing.assert_array_equal(PackedMxfp4(96).values((elements, scales)), wanted[0].T.numpy())
    direct = gguf.quants.dequantize(PackedMxfp4(96).blocks((elements, scales), None), gguf.GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(direct, wanted[0].T.numpy())


def test_types_are_told_apart_by_their_names() -> None:
    """What is stored as GGUF has it bears GGUF's name; a plan of anything else keeps no type."""
    plan = ModelPlan("llama", {}, sketch_model(folder()).tensors, ())
    assert {tensor.dtype for tensor in plan.tensors if tensor.packing} == {"MXFP4"}
