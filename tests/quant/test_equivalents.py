"""Models of which only their authors have the program: the same file as of the model that computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from quant.convert.planning import plan_model
from tests.converting import write
from tests.quant.support import DEMO, Folder, llama_shapes, safetensors

HEADS, SHARED, HEAD = 8, 2, 16
WIDTH = HEADS * HEAD
SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": SHARED,
    "head_dim": None,
    "rope_theta": 50000.0,
    "tie_word_embeddings": False,
}


def model(tensors: dict[str, np.ndarray], **config: Any) -> Folder:
    data = {name: ("F32", value.shape, value.tobytes()) for name, value in tensors.items()}
    return Folder(DEMO).change("config.json", **{**SIZES, **config}).with_file("model.safetensors", safetensors(data))


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    shapes = llama_shapes(2, WIDTH, 160, HEADS, SHARED, 4096)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def converted(folder: Folder, path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What describes the file, and its tensors, by `gguf`."""
    plan = plan_model(folder)
    write(plan, "F32", folder.stream, path)
    facts = {key: value for key, value in plan.metadata.items() if key.startswith(plan.architecture)}
    return facts, {tensor.name: tensor.data.copy() for tensor in gguf.GGUFReader(path).tensors}


def same(first: Folder, second: Folder, path: Path) -> None:
    (facts, tensors), (others, wanted) = (converted(each, path / "m.gguf") for each in (first, second))
    assert facts == others
    assert tensors.keys() == wanted.keys()
    assert all(np.array_equal(tensors[name], wanted[name]) for name in wanted)


def test_internlm_2_is_llama_with_its_attention_in_one_matrix(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    names = {
        "embed_tokens": "tok_embeddings",
        "lm_head": "output",
        "o_proj": "wo",
        "self_attn": "attention",
        "gate_proj": "w1",
        "down_proj": "w2",
        "up_proj": "w3",
        "mlp": "feed_forward",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    tensors = {}
    for name, value in weights.items():
        if any(part in name for part in ("q_proj", "k_proj", "v_proj")):
            continue
        parts = [names.get(part, part) for part in name.split(".")]
        tensors[".".join(parts)] = value
    for layer in range(2):
        at = f"model.layers.{layer}."
        queries, keys, values = (
            weights[f"{at}self_attn.{kind}_proj.weight"].reshape(SHARED, -1, HEAD, WIDTH) for kind in "qkv"
        )
        fused = np.concatenate([queries, keys, values], axis=1)
        tensors[f"{at}attention.wqkv.weight"] = fused.reshape(-1, WIDTH)
    same(model(tensors, architectures=["InternLM2ForCausalLM"], bias=False), model(weights), tmp_path)


@pytest.mark.slow
def test_baichuan_is_llama_with_its_attention_in_one_matrix(tmp_path: Path) -> None:
    """llama.cpp's own converter fails on it. The output of Baichuan 2 has rows of the length 1."""
    rng = np.random.default_rng(7)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 32, "num_attention_heads": 2}
    shapes = llama_shapes(32, 32, 48, 2, 2, 125_696)
    weights = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    own = {name: value for name, value in weights.items() if not name.endswith(("q_proj.weight", "k_proj.weight"))}
    for name in [name for name in own if name.endswith("v_proj.weight")]:
        parts = [weights[name.replace("v_proj", f"{kind}_proj")] for kind in "qkv"]
        own[name.replace("v_proj", "W_pack")] = np.concatenate(parts)
        del own[name]
    output = weights["lm_head.weight"]
    weights["lm_head.weight"] = output / np.linalg.norm(output, axis=-1, keepdims=True)
    config = {**sizes, "num_key_value_heads": None, "vocab_size": 125_696}
    folders = model(own, **config, architectures=["BaichuanForCausalLM"]), model(weights, **config)
    (facts, tensors), (others, wanted) = (converted(each, tmp_path / "m.gguf") for each in folders)
    assert {key.removeprefix("baichuan."): value for key, value in facts.items()} == {
        key.removeprefix("llama."): value for key, value in others.items()
    }
    assert tensors.keys() == wanted.keys()
    assert all(np.array_equal(tensors[name], wanted[name]) for name in wanted)


def test_minicpm_is_granite_by_other_names(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    own = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 32}
    scales = {
        "embedding_multiplier": 12.0,
        "residual_multiplier": 1.4 / 2**0.5,
        "attention_multiplier": HEAD**-0.5,
        "logits_scaling": WIDTH / 32,
    }
    granite = model(weights, architectures=["GraniteForCausalLM"], **scales)
    same(model(weights, architectures=["MiniCPMForCausalLM"], **own), granite, tmp_path)
