"""Mixtures as their authors publish them: in FP8, with layers that guess further tokens; what is refused, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from quant.convert.planning import sketch_model
from quant.errors import MalformedFile, UnsupportedModel
from tests.converting import write
from tests.quant.support import Folder, safetensors

WIDTH, HEADS, EXPERTS, LAYERS = 160, 3, 4, 3
CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "hidden_size": WIDTH,
    "intermediate_size": 192,
    "vocab_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "q_lora_rank": 96,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 40,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 1,
    "moe_intermediate_size": 96,
    "first_k_dense_replace": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "num_nextn_predict_layers": 1,
}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def shapes() -> dict[str, tuple[int, ...]]:
    """DeepSeek V3, small, with a layer behind the last that guesses."""
    attention = {
        "q_a_proj": (96, WIDTH),
        "q_b_proj": (HEADS * 56, 96),
        "kv_a_proj_with_mqa": (80, WIDTH),
        "kv_b_proj": (HEADS * 64, 64),
        "o_proj": (WIDTH, HEADS * 24),
        "q_a_layernorm": (96,),
        "kv_a_layernorm": (64,),
    }
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (64, WIDTH), "model.norm.weight": (WIDTH,)}
    found["lm_head.weight"] = (64, WIDTH)
    for layer in range(LAYERS + 1):
        at = f"model.layers.{layer}."
        found |= {f"{at}{name}.weight": (WIDTH,) for name in ("input_layernorm", "post_attention_layernorm")}
        found |= {f"{at}self_attn.{name}.weight": shape for name, shape in attention.items()}
        inner = {"mlp": 192} if not layer else {f"mlp.experts.{number}": 96 for number in range(EXPERTS)}
        for part, rows in {**inner, **({"mlp.shared_experts": 96} if layer else {})}.items():
            found |= {f"{at}{part}.{name}_proj.weight": (rows, WIDTH) for name in ("gate", "up")}
            found[f"{at}{part}.down_proj.weight"] = (WIDTH, rows)
        if layer:
            found |= {f"{at}mlp.gate.weight": (EXPERTS, WIDTH), f"{at}mlp.gate.e_score_correction_bias": (EXPERTS,)}
    found[f"model.layers.{LAYERS}.eh_proj.weight"] = (WIDTH, 2 * WIDTH)
    return found


def folder(tensors: dict[str, tuple[str, tuple[int, ...], bytes]], **config: Any) -> Folder:
    contents = {"model.safetensors": safetensors(tensors), "config.json": json.dumps({**CONFIG, **config}).encode()}
    return Folder(contents=contents)


def twins() -> tuple[Folder, Folder]:
    """A model in FP8, and the same numbers in float32."""
    rng = np.random.default_rng(9)
    small, wide = {}, {}
    codes = np.arange(256, dtype=np.uint8)
    sizes = np.where(codes & 127 > 7, (8 + (codes & 7)) * 2.0 ** ((codes >> 3 & 15) - 10.0), (codes & 7) * 2.0**-9)
    numbers = np.where(codes < 128, sizes, -sizes).astype(np.float32)
    for name, shape in shapes().items():
        if len(shape) < 2 or "layers" not in name or name.endswith("mlp.gate.weight"):
            values = rng.standard_normal(shape).astype(np.float32)
            small[name] = wide[name] = ("F32", shape, values.tobytes())
            continue
        elements = rng.integers(0, 127, shape, np.uint8) | rng.integers(0, 2, shape, np.uint8) << 7
        scales = rng.random([-(-size // 128) for size in shape]).astype(np.float32)
        small[name] = ("F8_E4M3", shape, elements.tobytes())
        small[f"{name}_scale_inv"] = ("F32", scales.shape, scales.tobytes())
        factors = scales.repeat(128, 0)[: shape[0]].repeat(128, 1)[:, : shape[1]]
        wide[name] = ("F32", shape, (numbers[elements] * factors).tobytes())
    return folder(small, quantization_config=FP8), folder(wide)


def read(source: Folder, path: Path) -> dict[str, np.ndarray]:
    write(sketch_model(source), "F32", source.stream, path)
    return {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}


def test_a_mixture_in_fp8_is_the_same_model(tmp_path: Path) -> None:
    small, wide = twins()
    found, wanted = read(small, tmp_path / "small.gguf"), read(wide, tmp_path / "wide.gguf")
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, name)
    # Per head: keys turned, values as they are.
    assert found["blk.1.attn_k_b.weight"].shape == (HEADS, 64, 40)
    assert found["blk.1.attn_v_b.weight"].shape == (HEADS, 24, 64)


def test_layers_that_guess_further_tokens_are_left_out_and_counted() -> None:
    _, wide = twins()
    plan = sketch_model(wide)
    behind = sum(4 * int(np.prod(shape)) for name, shape in shapes().items() if f"layers.{LAYERS}." in name)
    assert plan.left_out == {"guesses at further tokens": behind}
    assert not any(tensor.name.startswith(f"blk.{LAYERS}.") for tensor in plan.tensors)
    with pytest.raises(UnsupportedModel, match=rf"no place for `model\.layers\.{LAYERS}\."):
        sketch_model(wide.change("config.json", num_nextn_predict_layers=0))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"topk_method": "greedy"}, "chooses its experts otherwise"),
        ({"scoring_func": "softmax"}, "chooses its experts otherwise"),
        ({"num_hidden_layers": 27}, "number of layers"),
        ({"rope_interleave": False}, "rotates halves"),
    ],
)
def test_what_llama_cpp_would_get_wrong_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UnsupportedModel, match=sentence):
        sketch_model(twins()[1].change("config.json", **changes))


def test_groups_that_cannot_be_are_malformed() -> None:
    with pytest.raises(MalformedFile, match="groups"):
        sketch_model(twins()[1].change("config.json", n_group=3))
