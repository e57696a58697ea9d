"""Command R and R7B by Cohere: one norm, attention and feed-forward side by side, scaled logits, one embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quant.convert.base import Family, Layers, count_layers, in_layers
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, moe, rotary
from quant.convert.families.decoder import DecoderSizes, layer, norm
from quant.convert.families.moe import RoutedSizes, read_routed_sizes
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


@dataclass(frozen=True, kw_only=True)
class _Cohere2MoeSizes(RoutedSizes):
    """The layers `answered` have experts of which some answer always."""

    answered: Layers


def _read_moe_sizes(config: ModelConfig) -> _Cohere2MoeSizes:
    expert, layers = config.count("intermediate_size"), count_layers(config)
    types = config.get("mlp_layer_types")
    if types is None:
        first = config.count("first_k_dense_replace") if config.get("first_k_dense_replace") else 0
        types = ["dense" if number < first else "sparse" for number in range(layers)]
    config.without_effect("first_k_dense_replace")
    dense = types.count("dense") if isinstance(types, list) else 0
    shared = config.get("num_shared_experts") and config.count("num_shared_experts")
    wide = config.count("prefix_dense_intermediate_size") if dense else expert
    config.without_effect("prefix_dense_intermediate_size")
    usual = config.changed(
        {
            "intermediate_size": wide,
            "mlp_layer_types": types,
            "moe_intermediate_size": expert,
            "n_routed_experts": config.count("num_experts"),
            "n_shared_experts": shared or 1,
        }
    )
    sizes = read_routed_sizes(usual, decoder.read_sizes(usual))
    return _Cohere2MoeSizes(
        **vars(sizes) | {"shared_experts": shared or 0}, answered=sizes.routed if shared else frozenset()
    )


def _describe_moe(config: ModelConfig, sizes: _Cohere2MoeSizes) -> dict[str, Any]:
    """llama.cpp rotates the first layers, which have no experts, in any case, and of the others those with a window."""
    if config.get("sliding_window", 4096) is None:
        raise UnsupportedModel("its `sliding_window` is null: it rotates nothing then, and llama.cpp all with a window")
    kind = rotary.kind_of(rotary.parameters(config))
    if kind not in ("default", "dynamic"):
        raise UnsupportedModel(f"its rotary scaling is `{kind}`, which the class of transformers reads in part alone")
    if config.get("rms_norm_eps") is not None:
        config = config.changed({"layer_norm_eps": None})
    softmax = config.get("expert_selection_fn", "softmax") == "softmax"
    if not softmax and config.get("expert_selection_fn") != "sigmoid":
        raise UnsupportedModel("it chooses its experts otherwise than llama.cpp does (`expert_selection_fn`)")
    if config.get("shared_expert_combination_strategy", "average") != "average" and sizes.answered:
        raise UnsupportedModel("it adds its shared experts (`shared_expert_combination_strategy`), llama.cpp averages")
    config.without_effect("shared_expert_combination_strategy", *(["norm_topk_prob"] if softmax else []))
    types = config.get("layer_types")
    if types is None:
        first, every = config.count("prefix_dense_sliding_window_pattern", 1), config.count("sliding_window_pattern", 4)
        rest = sizes.layers - len(sizes.dense)
        steps = [(n, first) for n in range(len(sizes.dense))] + [(n, every) for n in range(rest)]
        types = ["sliding_attention" if (n + 1) % step else "full_attention" for n, step in steps]
    entries = {
        **_describe(config, sizes),
        **decoder.windows(config.changed({"layer_types": types}), sizes),
        "leading_dense_block_count": len(sizes.dense),
        **decoder.describe_experts(sizes.experts, config.count("num_experts_per_tok")),
        "expert_feed_forward_length": sizes.expert,
        "expert_weights_norm": softmax or config.flag("norm_topk_prob", True),
        "expert_gating_func": 1 if softmax else 2,
    }
    turned = all(types[number] == "sliding_attention" for number in sizes.dense)
    if config.count("prefix_dense_sliding_window_pattern", 1) != 1 and not turned:
        raise UnsupportedModel("it rotates not all of its first layers (`prefix_dense_sliding_window_pattern`)")
    if not sizes.answered:
        return entries
    shared = {"expert_shared_count": sizes.shared_experts, "expert_shared_feed_forward_length": sizes.shared_expert}
    return {**entries, **shared}


COMMAND_MOE = Family(
    classes=("Cohere2MoeForCausalLM",),
    architecture="cohere2moe",
    tensors=(
        *decoder.ENDS,
        *decoder.ATTENTION,
        *norm("input_layernorm", "attn_norm"),
        *in_layers("dense", *decoder.GATED),
        *in_layers("routed", *moe.EITHER_EXPERTS),
        *in_layers("answered", *moe.shared("mlp.shared_experts")),
    ),
    sizes=_Cohere2MoeSizes,
    read_sizes=_read_moe_sizes,
    describe=_describe_moe,
    tied=True,
)
FAMILIES = (COMMAND_R, COMMAND_R7B, COMMAND_MOE)
