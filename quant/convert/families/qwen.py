"""Qwen 2, 2.5 and 3: Llama's layers with biases (2) or norms of every head (3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quant.convert.base import Family, headless
from quant.convert.config import ModelConfig
from quant.convert.families import decoder
from quant.convert.families.decoder import DecoderSizes


def describe(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    """The entries of a decoder whose window is told by `sliding_window` where `use_sliding_window` is set."""
    entries = decoder.describe(config, sizes)
    if config.flag("use_sliding_window"):
        return decoder.bounded_by_window(config, entries)
    config.without_effect("layer_types")
    return entries


def _describe(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    if _has_windows(config, sizes):
        return describe(config, sizes)
    config.without_effect("sliding_window", "use_sliding_window")
    return decoder.describe(config, sizes)


def _has_windows(config: ModelConfig, sizes: DecoderSizes) -> bool:
    """Whether any layer has a window: layers that `layer_types` names, else all from `max_window_layers` on."""
    types, first = config.get("layer_types"), config.get("max_window_layers")
    if isinstance(types, list):
        return "sliding_attention" in types
    return (first if type(first) is int else 28) < sizes.layers


QWEN2 = Family(
    classes=("Qwen2ForCausalLM",),
    architecture="qwen2",
    tensors=decoder.STANDARD,
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=_describe,
)
QWEN3 = Family(
    classes=("Qwen3ForCausalLM",),
    architecture="qwen3",
    tensors=decoder.STANDARD + decoder.HEAD_NORMS,
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=_describe,
)
_NORM_NAMES = {"input_layernorm": "pre_attention_layernorm", "post_attention_layernorm": "pre_mlp_layernorm"}
KORMO = replace(
    QWEN2,
    classes=("KORMoForCausalLM",),
    tensors=decoder.renamed(decoder.STANDARD, **_NORM_NAMES),
    describe=decoder.describe,
)
# Published for embeddings without the output.
BARE = tuple(
    replace(headless(whole), classes=(name,), encoder=True)
    for whole, name in ((QWEN2, "Qwen2Model"), (QWEN3, "Qwen3Model"))
)
FAMILIES = (QWEN2, QWEN3, KORMO, *BARE)
