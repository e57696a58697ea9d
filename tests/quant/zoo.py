"""Small random models of every architecture, made by transformers, with attention that is peaked and logits that vary.

The weights come from NumPy's frozen generator and the tensor's name, so a model is the same wherever it is made.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.quant.support import DEMO

VOCABULARY = 4160
SIZES = {
    **{"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "vocab_size": VOCABULARY},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512},
    **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
}


class Row(NamedTuple):
    """An architecture: what transformers calls it, how its config differs from `SIZES` (None: it has no such key)."""

    kind: str
    config: Mapping[str, Any] = {}
    task: str = "ForCausalLM"
    spread: float = 3.0


LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LAYERS = ["sliding_attention", "full_attention"]
WINDOW = {"head_dim": 64, "sliding_window": 48, "num_hidden_layers": 2, "layer_types": LAYERS}
ZOO: dict[str, Row] = {
    "llama": Row("Llama"),
    "llama, biases": Row("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, tied": Row("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama, wide rotation": Row("Llama", {"rope_theta": 500000.0, "rms_norm_eps": 1e-3}),
    "llama, linear": Row("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama 3.1": Row("Llama", {"rope_scaling": {**LLAMA_3, "original_max_position_embeddings": 64}}),
    "llama, yarn": Row("Llama", {"rope_scaling": YARN}),
    "mistral": Row("Mistral", {"sliding_window": None, "head_dim": 64}),
    "smollm3": Row("SmolLM3", {"num_hidden_layers": 5}),
    "granite": Row(
        "Granite",
        {
            **{"embedding_multiplier": 12.0, "attention_multiplier": 0.3, "logits_scaling": 0.5},
            **{"residual_multiplier": 0.22, "tie_word_embeddings": True},
        },
    ),
    "qwen2": Row("Qwen2"),
    "qwen2, tied": Row("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": Row("Qwen3", {"head_dim": 64}),
    "gemma": Row("Gemma", {"head_dim": 64, "num_hidden_layers": 2}, spread=1.0),
    "gemma2": Row("Gemma2", {**WINDOW, "query_pre_attn_scalar": 64}, spread=1.0),
    "gemma3": Row("Gemma3", {**WINDOW, "query_pre_attn_scalar": 64}, spread=1.0),
}


def config_of(row: Row) -> dict[str, Any]:
    """The settings by which transformers makes the model."""
    return {key: value for key, value in {**SIZES, **row.config}.items() if value is not None or key in row.config}


def weight(name: str, shape: tuple[int, ...], spread: float) -> np.ndarray:
    """float32 weights for the tensor of this name: norms around their middle, matrices by their inputs."""
    random = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) < 2:
        middle = 1.0 if "norm" in name.lower() or "ln_" in name else 0.0
        return (middle + 0.3 * random).astype(np.float32)
    return (random * spread / shape[-1] ** 0.5).astype(np.float32)


def make(row: Row, path: Path) -> Path:
    """The model in a folder as its authors would publish it, in several shards, with the demo's tokenizer."""
    import torch
    import transformers

    made = getattr(transformers, f"{row.kind}{'Text' if row.kind == 'Gemma3' else ''}Config")(**config_of(row))
    model = getattr(transformers, row.kind + row.task)(made)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.copy_(torch.from_numpy(weight(name, tuple(tensor.shape), row.spread)))
    model.save_pretrained(path, max_shard_size="1MB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((DEMO / name).read_bytes())
    assert json.loads((path / "config.json").read_text())["architectures"] == [row.kind + row.task]
    return path


def reference(path: Path, row: Row, ids: list[int]) -> np.ndarray:
    """float32[len(ids), vocabulary]: what transformers computes, with the engine's GELU."""
    import torch
    import transformers

    made = getattr(transformers, row.kind + row.task)
    model = made.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    for module in list(model.modules()):
        for name, part in module.named_children():
            if "GELU" in type(part).__name__:
                setattr(module, name, engine_gelu())
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def engine_gelu() -> Any:
    """llama.cpp's GELU on a CPU: the approximation by tanh, from a table that is indexed and filled with float16."""
    import torch

    class Gelu(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rounded = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
            return torch.where(x >= 10, x, torch.where(x <= -10, torch.zeros_like(x), rounded))

    return Gelu()
