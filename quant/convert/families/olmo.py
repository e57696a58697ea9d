"""OLMo 1, whose norms have no weights; 2 and 3: norms behind each part, and of all queries and keys; 3 has windows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quant.convert.base import Family
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, rotary
from quant.convert.families.decoder import DecoderSizes, norm
from quant.errors import UnsupportedModel


def _describe_three(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    entries = decoder.describe(config, sizes)
    if rotary.base(config, "sliding_attention", entries["rope.freq_base"]) != entries["rope.freq_base"]:
        raise UnsupportedModel("it rotates by another base where it has a window, which llama.cpp does not know")
    return {**entries, **decoder.windows(config, sizes, every=4, optional=True)}


def _describe_one(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    """Its norms have no weights, and an epsilon that is fixed."""
    clip = config.get("clip_qkv")
    return {
        **decoder.describe(config.changed({"layer_norm_eps": 1e-5}), sizes),
        **({} if clip is None else {"attention.clamp_kqv": config.number("clip_qkv")}),
    }


OLMO = Family(
    classes=("OlmoForCausalLM", "OLMoForCausalLM"),
    architecture="olmo",
    tensors=decoder.paired((decoder.EMBEDDING, decoder.OUTPUT, *decoder.ATTENTION, *decoder.GATED)),
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=_describe_one,
)
OLMO2 = Family(
    classes=("Olmo2ForCausalLM",),
    architecture="olmo2",
    tensors=(
        *decoder.BASE,
        *norm("self_attn.q_norm", "attn_q_norm", "queries"),
        *norm("self_attn.k_norm", "attn_k_norm", "keys"),
        *norm("post_attention_layernorm", "post_attention_norm"),
        *norm("post_feedforward_layernorm", "post_ffw_norm"),
    ),
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=decoder.describe,
)
OLMO3 = replace(OLMO2, classes=("Olmo3ForCausalLM",), describe=_describe_three)
FAMILIES = (OLMO, OLMO2, OLMO3)
