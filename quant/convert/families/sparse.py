"""Further mixtures after DeepSeek's pattern: Solar Open, Trinity (AFMoE), K-EXAONE, Hunyuan V3, Ling, DeepSeek 1.

Sources: `modeling_*.py` of transformers and of the models' repositories, `models/*.cpp` of llama.cpp.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quant.convert.base import Family, Known, Target, in_layers, tensor
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, moe, predicting, relatives, rotary, routed
from quant.convert.families.decoder import LAYER, layer, linear, norm, router
from quant.convert.families.moe import MixtureSizes, RoutedSizes
from quant.convert.reordering import TakePaired
from quant.convert.transforms import TakeRows
from quant.errors import UnsupportedModel
from quant.plan import Reversible

_POST_NORMS = norm("post_attention_layernorm", "post_attention_norm") + norm("post_mlp_layernorm", "post_ffw_norm")


def _by_usual_names(config: ModelConfig, **names: str) -> ModelConfig:
    """The settings by the names that DeepSeek gave them: `names` are the usual name and the name in this class."""
    found = {usual: config.get(name) for usual, name in names.items()}
    return config.changed({usual: value for usual, value in found.items() if value is not None})


def _read_sizes(config: ModelConfig) -> RoutedSizes:
    return moe.read_routed_sizes(config, decoder.read_sizes(config))


def _read_solar_sizes(config: ModelConfig) -> RoutedSizes:
    """All layers have experts."""
    filled = config.filled({"intermediate_size": config.get("moe_intermediate_size"), "first_k_dense_replace": 0})
    return _read_sizes(filled)


SOLAR_OPEN = replace(routed.GLM4_MOE, classes=("SolarOpenForCausalLM",), read_sizes=_read_solar_sizes)


def _usual_afmoe(config: ModelConfig) -> ModelConfig:
    return _by_usual_names(
        config,
        n_routed_experts="num_experts",
        n_shared_experts="num_shared_experts",
        first_k_dense_replace="num_dense_layers",
        routed_scaling_factor="route_scale",
        norm_topk_prob="route_norm",
    ).filled({"norm_topk_prob": True})


def _describe_afmoe(config: ModelConfig, sizes: RoutedSizes) -> dict[str, Any]:
    """Only layers with a window are rotated: all but every fourth, whatever the file says."""
    if config.flag("mup_enabled") is not True:
        raise UnsupportedModel("it does not scale its embedding (`mup_enabled`), as llama.cpp always does in this kind")
    if config.get("score_func", "sigmoid") != "sigmoid":
        raise UnsupportedModel("it chooses its experts otherwise than llama.cpp does (`score_func`)")
    every = config.count("global_attn_every_n_layers", 4)
    entries = decoder.windows(config, sizes, every)
    pattern = entries["attention.sliding_window_pattern"]
    if pattern != [(number + 1) % 4 != 0 for number in range(sizes.layers)]:
        raise UnsupportedModel("it rotates other layers than all but every fourth, which llama.cpp always does")
    usual = _usual_afmoe(config)
    return {**decoder.describe(config, sizes), **entries, **moe.describe_routed(usual, sizes, "sigmoid")}


AFMOE = Family(
    classes=("AfmoeForCausalLM",),
    architecture="afmoe",
    tensors=(
        *decoder.ENDS,
        *decoder.ATTENTION,
        *decoder.HEAD_NORMS,
        *linear("self_attn.gate_proj", "attn_gate", "queries", "width", bias=False),
        *norm("input_layernorm", "attn_norm"),
        *norm("pre_mlp_layernorm", "ffn_norm"),
        *_POST_NORMS,
        *in_layers("dense", *decoder.GATED),
        *in_layers(
            "routed",
            router("mlp.router.gate"),
            *moe.EXPERT_MATRICES,
            *moe.shared("mlp.shared_experts"),
            layer("mlp.expert_bias", "exp_probs_b.bias", "experts"),
        ),
    ),
    sizes=RoutedSizes,
    read_sizes=lambda config: _read_sizes(_usual_afmoe(config)),
    describe=_describe_afmoe,
)


def _usual_exaone(config: ModelConfig) -> ModelConfig:
    return _by_usual_names(config, n_routed_experts="num_experts", n_shared_experts="num_shared_experts")


def _describe_exaone(config: ModelConfig, sizes: RoutedSizes) -> dict[str, Any]:
    return {
        **decoder.describe(config, sizes),
        **decoder.windows(config, sizes),
        **moe.describe_routed(_usual_exaone(config), sizes, "sigmoid"),
        "expert_shared_feed_forward_length": sizes.shared_expert,
    }


EXAONE_MOE = Family(
    classes=("ExaoneMoeForCausalLM", "ExaoneMoEForCausalLM"),
    architecture="exaone-moe",
    tensors=(
        *decoder.UNGATED,
        *decoder.HEAD_NORMS,
        *in_layers("dense", *decoder.GATED),
        *in_layers(
            "routed",
            *moe.EXPERTS,
            *moe.shared("mlp.shared_experts"),
            layer("mlp.e_score_correction_bias", "exp_probs_b.bias", "experts"),
        ),
    ),
    sizes=RoutedSizes,
    read_sizes=lambda config: _read_sizes(_usual_exaone(config)),
    describe=_describe_exaone,
    computed=rotary.tables,
)


def _usual_hunyuan(config: ModelConfig) -> ModelConfig:
    return _by_usual_names(
        config,
        n_routed_experts="num_experts",
        n_shared_experts="num_shared_experts",
        routed_scaling_factor="router_scaling_factor",
        norm_topk_prob="route_norm",
    ).filled({"norm_topk_prob": True, "first_k_dense_replace": 1})


def _describe_hunyuan(config: ModelConfig, sizes: RoutedSizes) -> dict[str, Any]:
    return {
        **relatives.describe_hunyuan(config, sizes),
        **moe.describe_routed(_usual_hunyuan(config), sizes, "sigmoid"),
        "expert_shared_feed_forward_length": sizes.shared_expert,
    }


_HUNYUAN_LAYER = (*decoder.NORMS, *decoder.ATTENTION, *decoder.HEAD_NORMS)
_HUNYUAN_ROUTED = (
    router("mlp.router.gate"),
    *moe.EXPERT_MATRICES,
    *moe.shared("mlp.shared_mlp"),
    layer("mlp.expert_bias", "exp_probs_b", "experts"),
)
HUNYUAN_V3 = Family(
    classes=("HYV3ForCausalLM",),
    architecture="hy_v3",
    tensors=(
        *decoder.ENDS,
        *_HUNYUAN_LAYER,
        *in_layers("dense", *decoder.GATED),
        *in_layers("routed", *_HUNYUAN_ROUTED),
        *predicting.next_layer(*_HUNYUAN_LAYER, *_HUNYUAN_ROUTED, norm="final_layernorm"),
    ),
    sizes=RoutedSizes,
    read_sizes=lambda config: _read_sizes(_usual_hunyuan(config)),
    describe=_describe_hunyuan,
)


def _take_queries(sizes: RoutedSizes) -> Reversible:
    return TakePaired(TakeRows(sizes.width, sizes.attention, 0, sizes.queries), sizes.head)


def _take_keys(sizes: RoutedSizes) -> Reversible:
    return TakePaired(TakeRows(sizes.width, sizes.attention, sizes.queries, sizes.keys), sizes.head)


def _take_values(sizes: RoutedSizes) -> Reversible:
    return TakeRows(sizes.width, sizes.attention, sizes.queries + sizes.keys, sizes.keys)


def _usual_ling(config: ModelConfig) -> ModelConfig:
    return _by_usual_names(config, n_routed_experts="num_experts", n_shared_experts="num_shared_experts")


def _describe_ling(config: ModelConfig, sizes: RoutedSizes) -> dict[str, Any]:
    if config.flag("norm_head"):
        raise UnsupportedModel("it divides its output by lengths (`norm_head`), which llama.cpp does not know")
    return {**decoder.describe(config, sizes), **moe.describe_routed(_usual_ling(config), sizes, "softmax")}


_LING_ENDS = (
    tensor("word_embeddings.weight", "token_embd.weight", "vocabulary", "width"),
    *decoder.final_norm(),
    decoder.OUTPUT,
    *decoder.NORMS,
)
LING = Family(
    classes=("BailingMoeForCausalLM",),
    architecture="bailingmoe",
    tensors=(
        *_LING_ENDS,
        Known(
            LAYER + "attention.query_key_value.weight",
            (
                Target("blk.{}.attn_q.weight", ("queries", "width"), _take_queries),
                Target("blk.{}.attn_k.weight", ("keys", "width"), _take_keys),
                Target("blk.{}.attn_v.weight", ("keys", "width"), _take_values),
            ),
            ("attention", "width"),
        ),
        *linear("attention.dense", "attn_output", "width", "queries", bias=False),
        *in_layers("dense", *decoder.GATED),
        *in_layers("routed", *moe.EXPERTS, *moe.shared("mlp.shared_experts")),
    ),
    sizes=RoutedSizes,
    read_sizes=lambda config: _read_sizes(_usual_ling(config)),
    describe=_describe_ling,
)


def _half_turned(config: ModelConfig) -> ModelConfig:
    return _usual_ling(config).filled({"partial_rotary_factor": 0.5})


def _describe_ling_2(config: ModelConfig, sizes: RoutedSizes) -> dict[str, Any]:
    for key, value in (("score_function", "sigmoid"), ("use_qk_norm", True), ("use_qkv_bias", False)):
        if config.get(key, value) != value:
            raise UnsupportedModel(f"it computes otherwise than llama.cpp's models of its kind do (`{key}`)")
    return {
        **decoder.describe(_half_turned(config), sizes),
        **moe.describe_routed(_usual_ling(config), sizes, "sigmoid"),
        # For each of them: llama.cpp multiplies by their number.
        "expert_shared_feed_forward_length": sizes.expert,
    }


LING_2 = Family(
    classes=("BailingMoeV2ForCausalLM",),
    architecture="bailingmoe2",
    tensors=(
        *_LING_ENDS,
        *linear("attention.query_key_value", "attn_qkv", "attention", "width", bias=False),
        *linear("attention.dense", "attn_output", "width", "queries", bias=False),
        *norm("attention.query_layernorm", "attn_q_norm", "head"),
        *norm("attention.key_layernorm", "attn_k_norm", "head"),
        *in_layers("dense", *decoder.GATED),
        *in_layers(
            "routed",
            *moe.EXPERTS,
            *moe.shared("mlp.shared_experts"),
            layer("mlp.gate.expert_bias", "exp_probs_b.bias", "experts"),
        ),
    ),
    sizes=RoutedSizes,
    read_sizes=lambda config: _read_sizes(_half_turned(config)),
    describe=_describe_ling_2,
)

# It turns whole heads.
SARVAM = replace(
    LING_2,
    classes=("SarvamMoEForCausalLM", "modeling_sarvam_moe.SarvamMoEForCausalLM"),
    read_sizes=lambda config: _read_sizes(_usual_ling(config)),
)


def _describe_deepseek(config: ModelConfig, sizes: RoutedSizes) -> dict[str, Any]:
    if config.flag("norm_topk_prob") or config.get("scoring_func", "softmax") != "softmax":
        raise UnsupportedModel("it weighs its experts otherwise than llama.cpp does (`norm_topk_prob`, `scoring_func`)")
    if config.count("moe_layer_freq", 1) != 1:
        raise UnsupportedModel("it has layers without experts between the others, which llama.cpp does not know")
    return {**decoder.describe(config, sizes), **moe.describe_routed(config, sizes, "softmax")}


DEEPSEEK = Family(
    classes=("DeepseekForCausalLM",),
    architecture="deepseek",
    tensors=(
        *decoder.paired(decoder.UNGATED),
        *in_layers("dense", *decoder.GATED),
        *in_layers("routed", *moe.EXPERTS, *moe.shared("mlp.shared_experts")),
    ),
    sizes=RoutedSizes,
    read_sizes=_read_sizes,
    describe=_describe_deepseek,
)


def _describe_arctic(config: ModelConfig, sizes: MixtureSizes) -> dict[str, Any]:
    for key, value in (("use_residual", True), ("parallel_attn_mlp_res", True), ("moe_layer_frequency", 1)):
        if config.get(key, value) != value:
            raise UnsupportedModel(f"it computes otherwise than llama.cpp's `arctic` does (`{key}`)")
    config.without_effect("enable_expert_tensor_parallelism", "moe_eval_capacity_factor", "moe_min_capacity")
    config.without_effect("moe_token_dropping", "moe_train_capacity_factor", "quantization")
    entries = decoder.bounded_by_window(config, decoder.describe(config, sizes))
    return {**entries, **decoder.describe_experts(sizes.experts, config.count("num_experts_per_tok"))}


# A dense part beside the experts, which has a norm of its own.
ARCTIC = replace(
    moe.MIXTRAL,
    classes=("ArcticForCausalLM",),
    architecture="arctic",
    tensors=(
        *decoder.ENDS,
        *decoder.paired(decoder.ATTENTION),
        *norm("input_layernorm", "attn_norm"),
        *norm("residual_layernorm", "ffn_norm"),
        *norm("post_attention_layernorm", "ffn_norm_exps"),
        *linear("residual_mlp.w1", "ffn_gate", "width", "width", bias=False),
        *linear("residual_mlp.w2", "ffn_down", "width", "width", bias=False),
        *linear("residual_mlp.w3", "ffn_up", "width", "width", bias=False),
        *moe.MIXTRAL_EXPERTS,
    ),
    describe=_describe_arctic,
    computed=lambda config, sizes: (),
)
FAMILIES = (SOLAR_OPEN, AFMOE, EXAONE_MOE, HUNYUAN_V3, LING, LING_2, SARVAM, DEEPSEEK, ARCTIC)
