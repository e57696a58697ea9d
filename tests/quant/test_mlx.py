"""Models as mlx-lm stores them: stacked experts, shifted norms, turned convolutions, scales of either sign."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from quant.convert.planning import plan_model
from quant.convert.prequantized.mlx import path_of
from quant.errors import MalformedFile
from quant.stream.packed.rows import PackedAffine
from quant.types import QuantType
from tests.converting import write
from tests.quant.packed_sources import Tensors, dense, raw
from tests.quant.support import DEMO, Folder, safetensors
from tests.quant.zoo.making import weight
from tests.quant.zoo.sketched import PREDICTING, Sketch, shapes

GROUP = 32
MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2, "rms_norm_eps": 1e-5}
QWEN = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True, "head_dim": 32}
LINEAR = PREDICTING["qwen3next, heads"]._replace(predicting=False)
GEMMA = {"head_dim": 32, "sliding_window": 64, "query_pre_attn_scalar": 32, "tie_word_embeddings": True}
MODELS = {
    "mixtral": Sketch("MixtralForCausalLM", MIXTURE),
    "qwen3moe": Sketch("Qwen3MoeForCausalLM", QWEN),
    "qwen3next": LINEAR,
    "gemma3": Sketch("Gemma3ForCausalLM", GEMMA, bare=()),
}
# The norms that MLX shifts in Qwen's models with linear attention.
SHIFTED = re.compile(r".*(\.(input_layernorm|post_attention_layernorm|q_norm|k_norm)|model\.norm)\.weight")
EXPERT = re.compile(r"(.+)\.experts\.(\d+)\.(\w+)\.weight")
NUMBERED = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def affine(x: np.ndarray, bits: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A matrix packed as MLX packs it, scales of either sign, and the numbers that it stands for."""
    groups = x.reshape(len(x), -1, GROUP)
    low, high = groups.min(-1), groups.max(-1)
    signs = np.where(np.arange(low.size).reshape(low.shape) % 3, 1, -1)
    scales = (signs * np.maximum(high - low, 1e-3) / ((1 << bits) - 1)).astype(np.float16)
    bias = np.where(signs > 0, low, high).astype(np.float16)
    wide, begin = scales.astype(np.float32)[..., None], bias.astype(np.float32)[..., None]
    codes = np.clip(np.round((groups - begin) / wide), 0, (1 << bits) - 1).astype(np.uint8)
    words = dense(codes.reshape(x.shape), bits).view("<u4")
    return {"weight": words, "scales": scales, "biases": bias}, (codes * wide + begin).reshape(x.shape)


def both(sketch: Sketch, bits: Mapping[str, int]) -> tuple[Tensors, Tensors]:
    """The tensors of a model as MLX stores them, and as Hugging Face does, of the same values.

    `bits` are numbers of their own for some modules; the others have four.
    """
    theirs: Tensors = {}
    ours: Tensors = {}
    stacks: dict[str, list[np.ndarray]] = {}
    linear = sketch is LINEAR
    for name, shape in sorted(shapes(sketch).items(), key=lambda item: [int(n) for n in re.findall(r"\d+", item[0])]):
        x = weight(name.removeprefix(sketch.prefix), shape, 1.0)
        module, expert = name.removesuffix(".weight"), EXPERT.fullmatch(name)
        if expert:
            module = f"{expert[1]}.switch_mlp.{NUMBERED.get(expert[3], expert[3])}"
        parts = {"weight": x}
        if len(shape) == 2 and shape[1] % GROUP == 0:
            parts, x = affine(x, bits.get(module, 4))
        ours[name] = raw(x.astype("<f4"))
        for part, array in parts.items():
            if expert:
                stacks.setdefault(f"{module}.{part}", []).append(array)
            elif not name.endswith(".weight"):
                theirs[name] = raw(array)
            elif linear and SHIFTED.fullmatch(name):
                theirs[name] = raw(array + np.float32(1))
            elif linear and "conv1d" in name:
                theirs[name] = raw(np.moveaxis(array, 2, 1))
            else:
                theirs[f"{module}.{part}"] = raw(array)
    return theirs | {name: raw(np.stack(arrays)) for name, arrays in stacks.items()}, ours


def folder(sketch: Sketch, tensors: Tensors, **more: Any) -> Folder:
    contents = {name: (DEMO / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    config = json.dumps({**sketch.settings(), **more}).encode()
    return Folder(contents={**contents, "model.safetensors": safetensors(tensors), "config.json": config})


def found(source: Folder, path: Path) -> dict[str, tuple[QuantType, np.ndarray]]:
    """The type and the values of each tensor, as gguf reads them."""
    write(plan_model(source), "F32", source.stream, path)
    return {
        tensor.name: (
            QuantType.by_id(int(tensor.tensor_type)),
            gguf.quants.dequantize(np.array(tensor.data), tensor.tensor_type),
        )
        for tensor in gguf.GGUFReader(path).tensors
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_mlx_is_the_model_it_was_made_of(name: str, tmp_path: Path) -> None:
    sketch = MODELS[name]
    own = {"model.layers.0.mlp.switch_mlp.down_proj": 8} if name == "qwen3moe" else {}
    theirs, ours = both(sketch, own)
    told = {path: {"group_size": GROUP, "bits": bits} for path, bits in own.items()}
    mlx = found(folder(sketch, theirs, quantization={"group_size": GROUP, "bits": 4, **told}), tmp_path / "mlx.gguf")
    wanted = found(folder(sketch, ours), tmp_path / "hf.gguf")
    assert mlx.keys() == wanted.keys()
    for tensor, (type, values) in mlx.items():
        np.testing.assert_array_equal(values, wanted[tensor][1], tensor)
        if "_exps" in tensor:
            taken = QuantType.F32 if own and tensor == "blk.0.ffn_down_exps.weight" else QuantType.Q4_1
            assert type is taken, tensor


@pytest.mark.slow
def test_experts_of_whole_weights_are_read_too(tmp_path: Path) -> None:
    sketch = MODELS["mixtral"]
    ours = both(sketch, {})[1]
    stacked: dict[str, list[np.ndarray]] = {}
    theirs: Tensors = {}
    for name, (dtype, shape, data) in ours.items():
        if expert := EXPERT.fullmatch(name):
            array = np.frombuffer(data, "<f4").reshape(shape)
            stacked.setdefault(f"{expert[1]}.switch_mlp.{NUMBERED[expert[3]]}.weight", []).append(array)
        else:
            theirs[name] = dtype, shape, data
    theirs |= {name: raw(np.stack(arrays)) for name, arrays in stacked.items()}
    mlx, wanted = (found(folder(sketch, each), tmp_path / "m.gguf") for each in (theirs, ours))
    for name, (_, values) in mlx.items():
        np.testing.assert_array_equal(values, wanted[name][1], name)


@pytest.mark.parametrize("shape", [(16, 8), (0, 4, 8), (5000, 1, 8)])
def test_what_is_no_stack_of_experts_is_refused(shape: tuple[int, ...]) -> None:
    sketch = MODELS["mixtral"]
    tensors = {name: raw(np.zeros(shape, "<f4")) for name, shape in shapes(sketch).items() if ".experts." not in name}
    name = "model.layers.0.block_sparse_moe.switch_mlp.gate_proj.weight"
    with pytest.raises(MalformedFile, match=r"no stack of experts|lack"):
        plan_model(folder(sketch, {**tensors, name: raw(np.zeros(shape, "<f4"))}))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("model.layers.1.mlp.experts.3.up_proj", "model.layers.1.mlp.switch_mlp.up_proj"),
        ("model.layers.1.block_sparse_moe.experts.3.w2", "model.layers.1.block_sparse_moe.switch_mlp.down_proj"),
        ("model.layers.1.mlp.gate", "model.layers.1.mlp.gate"),
    ],
)
def test_an_expert_has_the_numbers_of_its_stack(name: str, path: str) -> None:
    assert path_of(name) == path


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_scales_of_either_sign_mean_what_mlx_reads(bits: int) -> None:
    mx = pytest.importorskip("mlx.core", reason="the package mlx is not installed")
    x = np.random.default_rng(bits).standard_normal((16, 128)).astype(np.float32)
    words, scales, biases = mx.quantize(mx.array(x), GROUP, bits)
    packing = PackedAffine(16, 128, 128 // GROUP, bits, "F32", None)
    arrays = [np.array(words).view("<i4"), np.array(scales), np.array(biases)]
    assert (arrays[1] < 0).any() and (arrays[1] > 0).any()
    theirs = np.array(mx.dequantize(words, scales, biases, GROUP, bits))
    np.testing.assert_allclose(packing.values(arrays), theirs, rtol=1e-6, atol=1e-6)
