"""Seed OSS, ERNIE 4.5 and Hunyuan (dense): Llama's layers with other norms, or rotated otherwise.

Sources: `modeling_*.py` of transformers, `models/*.cpp` of llama.cpp.
"""

from __future__ import annotations

from typing import Any

from quant.convert import decoder, rotary
from quant.convert.base import Family, Sizes
from quant.convert.config import Config
from quant.convert.decoder import norm

_BASE = (decoder.EMBEDDING, *decoder.final_norm(), decoder.OUTPUT, *decoder.ATTENTION, *decoder.GATED)
SEED_OSS = Family(
    classes=("SeedOssForCausalLM",),
    architecture="seed_oss",
    tensors=(
        *_BASE,
        *norm("input_layernorm", "attn_norm"),
        *norm("post_attention_layernorm", "post_attention_norm"),
    ),
    read_sizes=decoder.read_sizes,
    describe=decoder.describe,
)
# Rotated in pairs already, as llama.cpp wants it here.
ERNIE = Family(
    classes=("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
    architecture="ernie4_5",
    tensors=decoder.PLAIN,
    read_sizes=decoder.read_sizes,
    describe=decoder.describe,
    prefix=r"((model|ernie)\.)?",
)


def describe_hunyuan(config: Config, sizes: Sizes) -> dict[str, Any]:
    """Its "dynamic" scaling with an `alpha` is a larger base, whatever the length."""
    entries = decoder.describe(config, sizes)
    alpha = rotary.parameters(config).get("alpha")
    if alpha:
        stretch = rotary.parameters(config).number("alpha")
        entries["rope.freq_base"] *= stretch ** (sizes["head"] / (sizes["head"] - 2))
    return entries


HUNYUAN_NORMS = (
    *norm("self_attn.query_layernorm", "attn_q_norm", "head"),
    *norm("self_attn.key_layernorm", "attn_k_norm", "head"),
)
HUNYUAN = Family(
    classes=("HunYuanDenseV1ForCausalLM",),
    architecture="hunyuan-dense",
    tensors=(*decoder.PLAIN, *HUNYUAN_NORMS),
    read_sizes=decoder.read_sizes,
    describe=describe_hunyuan,
)
FAMILIES = (SEED_OSS, ERNIE, HUNYUAN)
