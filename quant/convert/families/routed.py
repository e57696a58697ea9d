"""Mixtures of many small experts: GLM 4.5 and 4.6, dots.llm1, ERNIE 4.5 MoE, Hunyuan MoE, MiniMax M2, OLMoE, LFM 2 MoE.

Most choose by probabilities to which a learned preference is added, as DeepSeek V3 does (`moe.py`); they differ in
their norms, in what is rotated, and in the names. Sources: `modeling_*.py` of transformers, `models/*.cpp` of
llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from quant.convert.base import Family, Layers, in_layers, tensor
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, moe, predicting, recurrent, relatives
from quant.convert.families.decoder import layer, norm, router, stacked
from quant.convert.families.moe import MixtureSizes, RoutedSizes
from quant.errors import MalformedFile, UnsupportedModel

_ALL_NORMS = norm("self_attn.q_norm", "attn_q_norm", "queries") + norm("self_attn.k_norm", "attn_k_norm", "keys")


def _read_sizes(config: ModelConfig) -> RoutedSizes:
    return moe.read_routed_sizes(config, decoder.read_sizes(config))


def _describe_glm(config: ModelConfig, sizes: RoutedSizes) -> dict[str, Any]:
    return {**decoder.describe(config, sizes), **moe.describe_routed(config, sizes, "sigmoid")}


def _describe_dots(config: ModelConfig, sizes: RoutedSizes) -> dict[str, Any]:
    if sizes.key_heads != sizes.heads:
        raise UnsupportedModel("its heads share keys, and those of llama.cpp's `dots1` do not")
    types, first = config.get("layer_types"), config.get("max_window_layers")
    if types and not isinstance(types, list):
        raise config.wrong("layer_types", f"a list of what {sizes.layers} layers are")
    windows = config.get("sliding_window") is not None and type(first) is int and first < sizes.layers
    if any(kind != "full_attention" for kind in types) if types else windows:
        raise UnsupportedModel("it has layers with a sliding window, and llama.cpp's `dots1` has none")
    return _describe_glm(config, sizes)


_ROUTED = (*moe.EXPERTS, *moe.shared("mlp.shared_experts"), *moe.PREFERENCE)
_MIXTURE = (*in_layers("dense", *decoder.GATED), *in_layers("routed", *_ROUTED))
_GLM_LAYER = (
    *decoder.ATTENTION,
    *norm("input_layernorm", "attn_norm"),
    *norm("post_attention_layernorm", "post_attention_norm"),
    *(replace(known, required=False) for known in decoder.HEAD_NORMS),
)
GLM4_MOE = Family(
    classes=("Glm4MoeForCausalLM",),
    architecture="glm4moe",
    tensors=(*decoder.ENDS, *_GLM_LAYER, *_MIXTURE, *predicting.next_layer(*_GLM_LAYER, *_ROUTED)),
    sizes=RoutedSizes,
    read_sizes=_read_sizes,
    describe=_describe_glm,
)
DOTS1 = Family(
    classes=("Dots1ForCausalLM",),
    architecture="dots1",
    tensors=(*decoder.UNGATED, *decoder.HEAD_NORMS, *_MIXTURE),
    sizes=RoutedSizes,
    read_sizes=_read_sizes,
    describe=_describe_dots,
)


# No sum of probabilities of the likeliest experts is as small.
_NOT_NOTICED = 1e-6


@dataclass(frozen=True, kw_only=True)
class _ErnieSizes(MixtureSizes):
    """`sharing` are the routed layers that also have an expert that answers always: all of them, or none."""

    dense: Layers
    routed: Layers
    sharing: Layers


def _read_ernie_sizes(config: ModelConfig) -> _ErnieSizes:
    sizes = decoder.read_sizes(config)
    last = config.get("moe_layer_end_index")
    whole = last is None or last == -1 or (type(last) is int and last >= sizes.layers - 1)
    if config.number("moe_norm_min", 0.0) > _NOT_NOTICED:
        raise UnsupportedModel("it divides the weights of its experts by no less than `moe_norm_min`")
    if not whole or config.count("moe_layer_interval", 1) != 1:
        raise UnsupportedModel("it has layers without experts between the others, which llama.cpp does not know")
    first, expert = config.get("moe_layer_start_index"), config.count("moe_intermediate_size")
    shared = config.count("moe_num_shared_experts") if config.get("moe_num_shared_experts") else 0
    dense = config.count("moe_layer_start_index") if first else 0
    if dense > sizes.layers:
        raise config.wrong("moe_layer_start_index", f"no more than its {sizes.layers} layers")
    routed = frozenset(range(dense, sizes.layers))
    return _ErnieSizes(
        **vars(sizes),
        experts=config.count("moe_num_experts"),
        expert=expert,
        shared_expert=expert * shared,
        dense=frozenset(range(dense)),
        routed=routed,
        sharing=routed if shared else frozenset(),
    )


def _describe_ernie(config: ModelConfig, sizes: _ErnieSizes) -> dict[str, Any]:
    shared = {"expert_shared_feed_forward_length": sizes.shared_expert} if sizes.shared_expert else {}
    return {
        **decoder.describe(config, sizes),
        **decoder.describe_experts(sizes.experts, config.count("moe_k")),
        "expert_feed_forward_length": sizes.expert,
        "leading_dense_block_count": len(sizes.dense),
        "interleave_moe_layer_step": 1,
        **shared,
    }


ERNIE_MOE = Family(
    classes=("Ernie4_5_MoeForCausalLM",),
    architecture="ernie4_5-moe",
    tensors=(
        *decoder.UNGATED,
        *in_layers("dense", *decoder.GATED),
        *in_layers("routed", *moe.EXPERTS),
        *in_layers("sharing", *moe.shared("mlp.shared_experts")),
        tensor(
            "layers.{}.mlp.moe_statics.e_score_correction_bias",
            "blk.{}.exp_probs_b.bias",
            1,
            "experts",
            required=False,
            layers="routed",
            becomes=("experts",),
        ),
    ),
    sizes=_ErnieSizes,
    read_sizes=_read_ernie_sizes,
    describe=_describe_ernie,
    tied=True,
)


def _read_hunyuan_sizes(config: ModelConfig) -> MixtureSizes:
    sizes = decoder.read_sizes(config)
    shared = _same(config, "num_shared_expert", 1) * sizes.feed_forward
    if _same(config, "moe_intermediate_size", sizes.feed_forward) != sizes.feed_forward:
        raise UnsupportedModel("its experts have another width than llama.cpp takes them to have")
    experts = _same(config, "num_experts")
    return MixtureSizes(**vars(sizes), experts=experts, expert=sizes.feed_forward, shared_expert=shared)


def _same(config: ModelConfig, key: str, default: int | None = None) -> int:
    """A number that may be given for every layer, and is the same for all."""
    value = config.get(key)
    if isinstance(value, list) and value and all(each == value[0] for each in value):
        value = value[0]
    return ModelConfig(config.name, {key: value}).count(key, default)


def _describe_hunyuan(config: ModelConfig, sizes: MixtureSizes) -> dict[str, Any]:
    return {
        **relatives.describe_hunyuan(config, sizes),
        **decoder.describe_experts(sizes.experts, _same(config, "moe_topk")),
        "expert_feed_forward_length": sizes.expert,
        "expert_shared_feed_forward_length": sizes.shared_expert,
    }


HUNYUAN_MOE = Family(
    classes=("HunYuanMoEV1ForCausalLM",),
    architecture="hunyuan-moe",
    tensors=(
        *decoder.UNGATED,
        *relatives.HUNYUAN_NORMS,
        router("mlp.gate.wg"),
        *moe.EXPERT_MATRICES,
        *moe.shared("mlp.shared_mlp"),
    ),
    sizes=MixtureSizes,
    read_sizes=_read_hunyuan_sizes,
    describe=_describe_hunyuan,
)


def _read_minimax_sizes(config: ModelConfig) -> MixtureSizes:
    share = config.get("partial_rotary_factor")
    if share is None and config.get("rotary_dim"):
        share = config.count("rotary_dim") / config.count("head_dim")
    sizes = decoder.read_sizes(config.changed({"partial_rotary_factor": share}))
    return MixtureSizes(**vars(sizes), experts=config.count("num_local_experts"), expert=sizes.feed_forward)


def _describe_minimax(config: ModelConfig, sizes: MixtureSizes) -> dict[str, Any]:
    if config.get("scoring_func", "sigmoid") != "sigmoid":
        raise UnsupportedModel("it chooses its experts otherwise than llama.cpp does (`scoring_func`)")
    return {
        **decoder.describe(config, sizes),
        **decoder.describe_experts(sizes.experts, config.count("num_experts_per_tok")),
        "expert_feed_forward_length": sizes.expert,
        "expert_gating_func": 2,
    }


MINIMAX_M2 = Family(
    classes=("MiniMaxM2ForCausalLM",),
    architecture="minimax-m2",
    tensors=(
        *decoder.UNGATED,
        *_ALL_NORMS,
        *moe.MIXTRAL_EXPERTS,
        layer("block_sparse_moe.e_score_correction_bias", "exp_probs_b.bias", "experts"),
    ),
    sizes=MixtureSizes,
    read_sizes=_read_minimax_sizes,
    describe=_describe_minimax,
)


def _read_olmoe_sizes(config: ModelConfig) -> MixtureSizes:
    sizes = decoder.read_sizes(config)
    return MixtureSizes(**vars(sizes), experts=config.count("num_experts"), expert=sizes.feed_forward)


def _describe_olmoe(config: ModelConfig, sizes: MixtureSizes) -> dict[str, Any]:
    if config.get("clip_qkv") is not None or config.flag("norm_topk_prob"):
        raise UnsupportedModel("it clips queries or weighs its experts otherwise than llama.cpp does")
    if sizes.queries != sizes.width:
        raise MalformedFile(f"its heads make up {sizes.queries} values and the model is {sizes.width} wide")
    if sizes.key_heads != sizes.heads:
        raise UnsupportedModel("its heads share keys (`num_key_value_heads`), and those of llama.cpp's `olmoe` do not")
    return {
        **decoder.describe(config, sizes),
        **decoder.describe_experts(sizes.experts, config.count("num_experts_per_tok")),
    }


OLMOE = Family(
    classes=("OlmoeForCausalLM",),
    architecture="olmoe",
    tensors=(*decoder.UNGATED, *_ALL_NORMS, *moe.EXPERTS),
    sizes=MixtureSizes,
    read_sizes=_read_olmoe_sizes,
    describe=_describe_olmoe,
)


@dataclass(frozen=True, kw_only=True)
class _Lfm2MixtureSizes(recurrent.Lfm2Sizes, MixtureSizes):
    dense: Layers
    routed: Layers


def _read_lfm2_sizes(config: ModelConfig) -> _Lfm2MixtureSizes:
    dense = config.count("num_dense_layers", 2) if config.get("num_dense_layers") != 0 else 0
    sizes = recurrent.LFM2.read_sizes(config.changed({"block_auto_adjust_ff_dim": False}))
    if dense > sizes.layers:
        raise config.wrong("num_dense_layers", f"no more than its {sizes.layers} layers")
    return _Lfm2MixtureSizes(
        **vars(sizes),
        experts=config.count("num_experts"),
        expert=config.count("moe_intermediate_size"),
        dense=frozenset(range(dense)),
        routed=frozenset(range(dense, sizes.layers)),
    )


def _describe_lfm2(config: ModelConfig, sizes: _Lfm2MixtureSizes) -> dict[str, Any]:
    expected = {"use_expert_bias": True, "norm_topk_prob": True, "routed_scaling_factor": 1.0}
    odd = [key for key, value in expected.items() if config.get(key, value) != value]
    if odd:
        raise UnsupportedModel(f"it chooses its experts otherwise than llama.cpp does (`{odd[0]}`)")
    return {
        **recurrent.LFM2.describe(config, sizes),
        **decoder.describe_experts(sizes.experts, config.count("num_experts_per_tok")),
        "expert_feed_forward_length": sizes.expert,
        "leading_dense_block_count": len(sizes.dense),
        "expert_gating_func": 2,
    }


LFM2_MOE = Family(
    classes=("Lfm2MoeForCausalLM",),
    architecture="lfm2moe",
    tensors=(
        *recurrent.LFM2_MIXERS,
        *in_layers("dense", *recurrent.LFM2_GATED),
        *in_layers(
            "routed",
            router("feed_forward.gate"),
            layer("feed_forward.expert_bias", "exp_probs_b.bias", "experts"),
            stacked("feed_forward.experts.[].w1", "ffn_gate", "expert", "width"),
            stacked("feed_forward.experts.[].w2", "ffn_down", "width", "expert"),
            stacked("feed_forward.experts.[].w3", "ffn_up", "expert", "width"),
        ),
    ),
    sizes=_Lfm2MixtureSizes,
    read_sizes=_read_lfm2_sizes,
    describe=_describe_lfm2,
    tied=True,
)
FAMILIES = (GLM4_MOE, DOTS1, ERNIE_MOE, HUNYUAN_MOE, MINIMAX_M2, OLMOE, LFM2_MOE)
