"""Eight models of a gigabyte and more, one for each way in which architectures differ in memory; weights are holes.

A GGUF file with a header that llama.cpp accepts, a made-up vocabulary, and zeros for weights, which take no disk. They
say nothing, but they load, and what they take and how fast they run is what real ones of their shape do.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quant.gguf.writer import encode_header, layout
from quant.levels.recipes import assign
from quant.plan import ModelPlan, TensorPlan
from quant.types import QuantType, Tensor

Tensors = list[tuple[str, tuple[int, ...]]]
Made = tuple[dict[str, Any], Tensors]


def llama(
    layers: int = 22,
    width: int = 2048,
    wide: int = 5632,
    heads: int = 32,
    shared: int = 4,
    vocabulary: int = 32_000,
    tied: bool = False,
    experts: int = 0,
) -> Made:
    """A Llama: layers of so many query and shared key heads, dense or of experts of which two answer."""
    head = width // heads
    facts = {
        "context_length": 32768,
        "embedding_length": width,
        "block_count": layers,
        "feed_forward_length": wide,
        "attention.head_count": heads,
        "attention.head_count_kv": shared,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": head,
        "vocab_size": vocabulary,
    }
    if experts:
        facts |= {"expert_count": experts, "expert_used_count": 2}
    tensors = _ends(width, vocabulary, tied)
    for layer in range(layers):
        at = f"blk.{layer}."
        tensors += [(f"{at}attn_norm.weight", (width,)), (f"{at}ffn_norm.weight", (width,))]
        tensors += [(f"{at}attn_q.weight", (width, width)), (f"{at}attn_output.weight", (width, width))]
        tensors += [(f"{at}attn_{kind}.weight", (width, shared * head)) for kind in "kv"]
        tensors += _experts(at, width, wide, experts) if experts else _feed_forward(at, width, wide)
    return _named("llama", facts), tensors


def _gemma3() -> Made:
    layers, width, wide, heads, shared, head, vocabulary = 26, 2048, 8192, 8, 4, 256, 65_536
    facts = {
        "context_length": 32768,
        "embedding_length": width,
        "block_count": layers,
        "feed_forward_length": wide,
        "attention.head_count": heads,
        "attention.head_count_kv": shared,
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.sliding_window": 512,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1_000_000.0,
        "vocab_size": vocabulary,
    }
    tensors = _ends(width, vocabulary, tied=True)
    for layer in range(layers):
        at = f"blk.{layer}."
        norms = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
        tensors += [(f"{at}{norm}.weight", (width,)) for norm in norms]
        tensors += [(f"{at}attn_{kind}_norm.weight", (head,)) for kind in "qk"]
        tensors += [(f"{at}attn_q.weight", (width, heads * head)), (f"{at}attn_output.weight", (heads * head, width))]
        tensors += [(f"{at}attn_{kind}.weight", (width, shared * head)) for kind in "kv"]
        tensors += _feed_forward(at, width, wide)
    return _named("gemma3", facts), tensors


def _deepseek2() -> Made:
    layers, width, wide, heads, vocabulary = 27, 2048, 5632, 16, 32_000
    rank, rope, plain, value = 512, 64, 128, 128
    facts = {
        "context_length": 32768,
        "embedding_length": width,
        "block_count": layers,
        "feed_forward_length": wide,
        "attention.head_count": heads,
        "attention.head_count_kv": 1,
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + rope,
        "attention.value_length": rank,
        "attention.key_length_mla": plain + rope,
        "attention.value_length_mla": value,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.dimension_count": rope,
        "leading_dense_block_count": layers,
        "expert_count": 0,
        "expert_used_count": 0,
        "expert_shared_count": 0,
        "expert_feed_forward_length": 1408,
        "expert_weights_scale": 1.0,
        "vocab_size": vocabulary,
    }
    tensors = _ends(width, vocabulary, tied=False)
    for layer in range(layers):
        at = f"blk.{layer}."
        tensors += [
            (f"{at}attn_norm.weight", (width,)),
            (f"{at}ffn_norm.weight", (width,)),
            (f"{at}attn_q.weight", (width, heads * (plain + rope))),
            (f"{at}attn_kv_a_mqa.weight", (width, rank + rope)),
            (f"{at}attn_kv_a_norm.weight", (rank,)),
            (f"{at}attn_k_b.weight", (plain, rank, heads)),
            (f"{at}attn_v_b.weight", (rank, value, heads)),
            (f"{at}attn_output.weight", (heads * value, width)),
            *_feed_forward(at, width, wide),
        ]
    return _named("deepseek2", facts), tensors


def _mamba() -> Made:
    layers, width, vocabulary = 48, 2048, 50_304
    inner, state, kernel, rank = 2 * width, 16, 4, 128
    facts = {
        "context_length": 1 << 20,
        "embedding_length": width,
        "block_count": layers,
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "ssm.conv_kernel": kernel,
        "ssm.inner_size": inner,
        "ssm.state_size": state,
        "ssm.time_step_rank": rank,
        "vocab_size": vocabulary,
    }
    tensors = _ends(width, vocabulary, tied=True)
    for layer in range(layers):
        at = f"blk.{layer}."
        tensors += [
            (f"{at}attn_norm.weight", (width,)),
            (f"{at}ssm_in.weight", (width, 2 * inner)),
            (f"{at}ssm_conv1d.weight", (kernel, inner)),
            (f"{at}ssm_conv1d.bias", (inner,)),
            (f"{at}ssm_x.weight", (inner, rank + 2 * state)),
            (f"{at}ssm_dt.weight", (rank, inner)),
            (f"{at}ssm_dt.bias", (inner,)),
            (f"{at}ssm_a", (state, inner)),
            (f"{at}ssm_d", (inner,)),
            (f"{at}ssm_out.weight", (inner, width)),
        ]
    return _named("mamba", facts), tensors


SHAPES: dict[str, Callable[[], Made]] = {
    "dense": lambda: llama(shared=32),
    "grouped": llama,
    "experts": lambda: llama(layers=12, width=1024, wide=3584, heads=16, shared=4, experts=8),
    "window": _gemma3,
    "latent": _deepseek2,
    "recurrent": _mamba,
    "tied": lambda: llama(layers=24, tied=True),
    "wide": lambda: llama(layers=16, vocabulary=256_000, shared=8),
}


def plan_of(made: Made) -> ModelPlan:
    """A shape as a plan, so that recipes can be asked what its tensors would be."""
    facts, tensors = made
    planned = tuple(TensorPlan(name, shape[::-1], "BF16") for name, shape in tensors)
    return ModelPlan(str(facts["general.architecture"]), facts, planned, ())


def write(path: Path, made: Made, level: str = "Q8_0") -> int:
    """Write a shape at a level; the length of the file in bytes."""
    facts, tensors = made
    architecture = facts["general.architecture"]
    types = assign(plan_of(made), level)
    placed = layout(Tensor(name, shape, _type(name, types[name])) for name, shape in tensors)
    header = encode_header(facts | _vocabulary(facts[f"{architecture}.vocab_size"]), placed)
    length = len(header) + placed[-1].offset + placed[-1].nbytes
    length += -length % 32
    with path.open("wb") as file:
        file.write(header)
        os.truncate(file.fileno(), length)
    return length


def _type(name: str, type: QuantType) -> QuantType:
    return QuantType.F32 if "conv1d" in name else type


def _vocabulary(size: int) -> dict[str, Any]:
    """Tokens of the lengths that real ones have, and merges as many."""
    tokens = [f"t{number:05d}" for number in range(size)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * size,
        "tokenizer.ggml.merges": [f"{token[:3]} {token[3:]}" for token in tokens],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def _named(architecture: str, facts: dict[str, Any]) -> dict[str, Any]:
    return {"general.architecture": architecture} | {f"{architecture}.{key}": value for key, value in facts.items()}


def _ends(width: int, vocabulary: int, tied: bool) -> Tensors:
    ends: Tensors = [("token_embd.weight", (width, vocabulary)), ("output_norm.weight", (width,))]
    return ends if tied else [*ends, ("output.weight", (width, vocabulary))]


def _feed_forward(at: str, width: int, wide: int) -> Tensors:
    down: Tensors = [(f"{at}ffn_down.weight", (wide, width))]
    return [(f"{at}ffn_{name}.weight", (width, wide)) for name in ("gate", "up")] + down


def _experts(at: str, width: int, wide: int, count: int) -> Tensors:
    return [
        (f"{at}ffn_gate_inp.weight", (width, count)),
        (f"{at}ffn_gate_exps.weight", (width, wide, count)),
        (f"{at}ffn_up_exps.weight", (width, wide, count)),
        (f"{at}ffn_down_exps.weight", (wide, width, count)),
    ]
