"""Mixtures with code of their own: GroveMoE, whose experts have a small one for each two, and SmallThinker.

Sources: the code in the models' repositories, `grovemoe.cpp` and `smallthinker.cpp` of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from quant.convert.base import Family
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, moe
from quant.convert.families.decoder import layer, router, stacked
from quant.convert.families.moe import MixtureSizes
from quant.errors import MalformedFile, UnsupportedModel

# llama.cpp's converter takes these for every model, and so for the only one that is published.
_TOGETHER, _SMALL_SCALE = 2, 0.05


@dataclass(frozen=True, kw_only=True)
class _GroveSizes(MixtureSizes):
    """`small` experts of the width `small_expert`, one for each two of the others."""

    small: int
    small_expert: int


def _read_grove_sizes(config: ModelConfig) -> _GroveSizes:
    sizes = moe.QWEN3_MOE.read_sizes(config)
    if sizes.experts % _TOGETHER:
        raise MalformedFile(f"{sizes.experts} experts cannot share a small one each {_TOGETHER}")
    return _GroveSizes(**vars(sizes), small=sizes.experts // _TOGETHER, small_expert=config.count("head_dim", 128))


def _describe_grove(config: ModelConfig, sizes: _GroveSizes) -> dict[str, Any]:
    return {
        **moe.QWEN3_MOE.describe(config, sizes),
        "expert_chunk_feed_forward_length": sizes.small_expert,
        "experts_per_group": _TOGETHER,
        "expert_group_scale": _SMALL_SCALE,
    }


_SMALL = (
    layer("mlp.chunk_experts.[].gate_proj.weight", "ffn_gate_chexps.weight", "small_expert", "width"),
    layer("mlp.chunk_experts.[].down_proj.weight", "ffn_down_chexps.weight", "width", "small_expert"),
    layer("mlp.chunk_experts.[].up_proj.weight", "ffn_up_chexps.weight", "small_expert", "width"),
)
GROVE = Family(
    classes=("GroveMoeForCausalLM", "modeling_grove_moe.GroveMoeForCausalLM"),
    architecture="grovemoe",
    tensors=(
        *decoder.UNGATED,
        *decoder.HEAD_NORMS,
        *moe.EXPERTS,
        *(replace(row, stack="small") for row in _SMALL),
    ),
    sizes=_GroveSizes,
    read_sizes=_read_grove_sizes,
    describe=_describe_grove,
    # Only for training: it evens out which experts are chosen.
    unused=r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq|layers\.\d+\.mlp\.expert_bias",
)
# The window that llama.cpp takes, whatever the file says, and every how many layers one sees all and is not rotated.
_WINDOW, _EVERY = 4096, 4


def _read_thinker_sizes(config: ModelConfig) -> MixtureSizes:
    wide = config.count("moe_ffn_hidden_size")
    return MixtureSizes(
        **vars(decoder.read_sizes(config.changed({"intermediate_size": wide}))),
        experts=config.count("moe_num_primary_experts"),
        expert=wide,
    )


def _describe_thinker(config: ModelConfig, sizes: MixtureSizes) -> dict[str, Any]:
    expected = {"moe_enable_early_router": True, "moe_enable_secondary_experts": False, "norm_topk_prob": True}
    wrong = [key for key, value in expected.items() if config.get(key, value) != value]
    if wrong:
        raise UnsupportedModel(f"it chooses its experts otherwise than llama.cpp does (`{wrong[0]}`)")
    layers = [config.get(key) or [0] * sizes.layers for key in ("sliding_window_layout", "rope_layout")]
    some = [int(number % _EVERY != 0) for number in range(sizes.layers)]
    sliding, rotated = layers
    if not any(sliding if isinstance(sliding, list) else [0]):
        fine, windows = rotated == [1] * sizes.layers, {}
    else:
        fine = sliding == rotated == some and config.count("sliding_window_size") == _WINDOW
        windows = {"attention.sliding_window": _WINDOW}
    if not fine:
        raise UnsupportedModel(
            f"llama.cpp's `smallthinker` knows windows of {_WINDOW} tokens in three of four layers, which it rotates "
            "alone, or none at all (`sliding_window_layout`, `rope_layout`)"
        )
    config.without_effect("sliding_window_size", "moe_num_secondary_experts", "moe_secondary_expert_size")
    return {
        **decoder.describe(config, sizes),
        **windows,
        **decoder.describe_experts(sizes.experts, config.count("moe_num_active_primary_experts")),
        "expert_feed_forward_length": sizes.expert,
        "expert_gating_func": 1 if config.flag("moe_primary_router_apply_softmax") else 2,
    }


THINKER = Family(
    classes=("SmallThinkerForCausalLM",),
    architecture="smallthinker",
    tensors=(
        *decoder.UNGATED,
        router("block_sparse_moe.primary_router"),
        stacked("block_sparse_moe.experts.[].gate", "ffn_gate", "expert", "width"),
        stacked("block_sparse_moe.experts.[].down", "ffn_down", "width", "expert"),
        stacked("block_sparse_moe.experts.[].up", "ffn_up", "expert", "width"),
    ),
    sizes=MixtureSizes,
    read_sizes=_read_thinker_sizes,
    describe=_describe_thinker,
    activations=("relu", "silu"),
)
FAMILIES = (GROVE, THINKER)
