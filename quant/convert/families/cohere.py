"""Command R and R7B by Cohere: one norm, attention and feed-forward side by side, scaled logits, one embedding."""

from __future__ import annotations

from typing import Any

from quant.convert.base import Family
from quant.convert.config import ModelConfig
from quant.convert.families import decoder
from quant.convert.families.decoder import DecoderSizes, layer, norm
from quant.errors import UnsupportedModel

_LAYERS_WITH_NORMS = 64
_BASE = (
    *decoder.BASE,
    *norm("input_layernorm", "attn_norm"),
)


def _describe(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    entries = decoder.describe(config, sizes)
    return {
        **entries,
        "logit_scale": decoder.scale(config, "logit_scale", 0.0625),
        "rope.scaling.type": entries.get("rope.scaling.type", "none"),
    }


def _describe_windows(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    if config.get("sliding_window", 4096) is None:
        raise UnsupportedModel(
            "its `sliding_window` is null: it rotates nothing then, and llama.cpp three of four layers"
        )
    return {**_describe(config, sizes), **decoder.windows(config.filled({"sliding_window_pattern": 4}), sizes)}


def _read_sizes(config: ModelConfig) -> DecoderSizes:
    """llama.cpp tells by the number of layers whether queries and keys have norms (`command-r.cpp`)."""
    sizes = decoder.read_sizes(config)
    if config.flag("use_qk_norm") and sizes.layers < _LAYERS_WITH_NORMS:
        raise UnsupportedModel(f"it has `use_qk_norm`, which llama.cpp takes for models of {_LAYERS_WITH_NORMS} layers")
    return sizes


COMMAND_R = Family(
    classes=("CohereForCausalLM",),
    architecture="command-r",
    tensors=(
        *_BASE,
        layer("self_attn.q_norm.weight", "attn_q_norm.weight", "heads", "head", required=False),
        layer("self_attn.k_norm.weight", "attn_k_norm.weight", "key_heads", "head", required=False),
    ),
    sizes=DecoderSizes,
    read_sizes=_read_sizes,
    describe=_describe,
    tied=True,
)
COMMAND_R7B = Family(
    classes=("Cohere2ForCausalLM",),
    architecture="cohere2",
    tensors=_BASE,
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=_describe_windows,
    tied=True,
)
FAMILIES = (COMMAND_R, COMMAND_R7B)
