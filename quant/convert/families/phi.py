"""Phi 2, 3 and 4: fused projections (3, 4), or norm, attention and feed-forward side by side with biases (2)."""

from __future__ import annotations

from typing import Any

from quant.convert.base import Family, tensor
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, rotary
from quant.convert.families.decoder import DecoderSizes, linear, norm


def _describe(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    return decoder.bounded_by_window(config, decoder.describe(config, sizes))


PHI3 = Family(
    classes=("Phi3ForCausalLM",),
    architecture="phi3",
    tensors=(
        *decoder.ENDS,
        *decoder.NORMS,
        *decoder.FUSED_GATED,
        *linear("self_attn.qkv_proj", "attn_qkv", "attention", "width", bias=False),
        *linear("self_attn.o_proj", "attn_output", "width", "queries", bias=False),
    ),
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=_describe,
    computed=rotary.tables,
)
PHI2 = Family(
    classes=("PhiForCausalLM",),
    architecture="phi2",
    tensors=(
        decoder.EMBEDDING,
        *decoder.final_norm("final_layernorm", bias=True),
        decoder.OUTPUT,
        tensor("lm_head.bias", "output.bias", "vocabulary"),
        *norm("input_layernorm", "attn_norm", bias=True),
        *linear("self_attn.q_proj", "attn_q", "queries", "width", bias=True),
        *linear("self_attn.k_proj", "attn_k", "keys", "width", bias=True),
        *linear("self_attn.v_proj", "attn_v", "keys", "width", bias=True),
        *linear("self_attn.dense", "attn_output", "width", "queries", bias=True),
        *linear("mlp.fc1", "ffn_up", "feed_forward", "width", bias=True),
        *linear("mlp.fc2", "ffn_down", "width", "feed_forward", bias=True),
    ),
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=decoder.describe,
    activations=("gelu_new", "gelu"),
)
FAMILIES = (PHI2, PHI3)
