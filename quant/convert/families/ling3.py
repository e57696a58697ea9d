"""Ling 3: delta attention with a rate for every channel in most layers, DeepSeek's latent attention in the others.

Sources: the code in the models' repositories, `bailingmoe3.cpp` of llama.cpp.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quant.convert.base import Family, Known, count_layers, in_layers, tensor
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, deepseek, moe
from quant.convert.families.decoder import layer, linear, norm
from quant.convert.families.kimi import KimiSizes
from quant.convert.transforms import Exponential
from quant.errors import UnsupportedModel

# The settings that have one value in llama.cpp's graph.
_EXPECTED = {
    "use_bias": False,
    "use_qkv_bias": False,
    "use_qk_norm": True,
    "linear_silu": True,
    "no_kda_lora": True,
    "use_kda_lora": False,
    "kda_safe_gate": True,
    "rope_interleave": True,
    "use_mla_nope": False,
    "scale_router_input": False,
    "norm_topk_prob": True,
    "moe_router_enable_expert_bias": True,
    "value_norm": False,
    "up_proj_norm": False,
    "use_nGPT": False,
    "score_function": "sigmoid",
    "gated_attention_proj_granularity_type": "head_wise",
    "group_norm_size": 1,
    "num_kv_heads_for_linear_attn": 0,
    "num_shared_experts": 1,
}


def _usual(config: ModelConfig) -> ModelConfig:
    """The settings by the names that DeepSeek gave them."""
    wrong = [key for key, value in _EXPECTED.items() if config.get(key, value) != value]
    if wrong:
        raise UnsupportedModel(f"it computes otherwise than llama.cpp's `bailingmoe3` does (`{wrong[0]}`)")
    # Said twice, about numbers that are not computed with, or about blocks that predict further tokens.
    config.without_effect("layer_types", "qk_head_dim", "rotary_dim", "router_dtype", "mtp_use_kda", "output_dropout")
    config.without_effect(
        "num_nextn_predict_layers", "mtp_loss_scaling_factor", "number_of_conv_states", "max_window_layers"
    )
    return config.changed(
        {
            "n_routed_experts": config.count("num_experts"),
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "partial_rotary_factor": None,
        }
    )


def _read_sizes(config: ModelConfig) -> KimiSizes:
    layers, group = count_layers(config), config.count("layer_group_size")
    straight = () if config.get("q_lora_rank") is not None else (layers,)
    sizes = deepseek.read_sizes(_usual(config), straight=straight)
    whole = layers // group * group
    attending = frozenset(n for n in range(layers) if (n + 1) % group == 0 or n >= whole)
    if len(attending) == layers:
        raise UnsupportedModel("none of its layers remembers by a state (`layer_group_size`), which llama.cpp needs")
    return KimiSizes(
        **vars(
            replace(
                sizes,
                ranked=sizes.ranked & attending,
                straight=sizes.straight & attending,
                shared_expert=config.count("moe_shared_expert_intermediate_size", sizes.expert),
            )
        ),
        linear_head=config.count("head_dim"),
        kernel=config.count("short_conv_kernel_size"),
        attending=attending,
        remembering=frozenset(range(layers)) - attending,
    )


def _bounds(config: ModelConfig, key: str, layers: int) -> list[float] | None:
    """A bound for each layer of the factors in a product of gate and up, 0 for none; None where there is no list."""
    values = config.get(key)
    if values is None:
        return None
    if not isinstance(values, list) or any(each is not None and type(each) not in (int, float) for each in values):
        raise config.wrong(key, f"a list of numbers for {layers} layers")
    bounds = [float(each or 0) for each in values[:layers]]
    return [*bounds, *[0.0] * (layers - len(bounds))]


def _describe(config: ModelConfig, sizes: KimiSizes) -> dict[str, Any]:
    bound = config.number("kda_lower_bound", -5.0)
    if bound >= 0:
        raise UnsupportedModel("the rates of its states have no bound below 0 (`kda_lower_bound`)")
    clamps = {
        "swiglu_clamp_exp": _bounds(config, "expert_swiglu_limit_list", sizes.layers),
        "swiglu_clamp_shexp": _bounds(config, "share_expert_swiglu_limit_list", sizes.layers),
    }
    return {
        **deepseek.describe_v3(_usual(config), sizes),
        # No heads mean a state.
        "attention.head_count_kv": [int(number in sizes.attending) for number in range(sizes.layers)],
        "expert_shared_feed_forward_length": sizes.shared_expert,
        "ssm.conv_kernel": sizes.kernel,
        "kda.head_dim": sizes.linear_head,
        "kda.safe_gate": True,
        "kda.gate_lower_bound": bound,
        **{key: values for key, values in clamps.items() if values is not None},
    }


def _convolution(kind: str) -> Known:
    source, target = f"attention.{kind}_conv1d.weight", f"ssm_conv1d_{kind}.weight"
    return layer(source, target, "inner", 1, "kernel", becomes=(1, "inner", 1, "kernel"))


_LATENT = tuple(row for row in deepseek.LATENT if "self_attn" in row.source)
_IN_ATTENTION = {"self_attn": "attention", "o_proj": "dense"}
LING3 = Family(
    classes=("BailingMoeV3ForCausalLM",),
    architecture="bailingmoe3",
    tensors=(
        tensor("word_embeddings.weight", "token_embd.weight", "vocabulary", "width"),
        *decoder.final_norm(),
        decoder.OUTPUT,
        *decoder.NORMS,
        *in_layers(
            "attending",
            *decoder.renamed(_LATENT, **_IN_ATTENTION),
            *linear("attention.g_proj", "attn_gate", "heads", "width", bias=False),
        ),
        *in_layers("ranked", *decoder.renamed(deepseek.RANKED, **_IN_ATTENTION)),
        *in_layers("straight", *linear("attention.q_proj", "attn_q", "queries", "width", bias=False)),
        *in_layers(
            "remembering",
            *linear("attention.q_proj", "attn_q", "inner", "width", bias=False),
            *linear("attention.k_proj", "attn_k", "inner", "width", bias=False),
            *linear("attention.v_proj", "attn_v", "inner", "width", bias=False),
            *(_convolution(kind) for kind in "qkv"),
            *linear("attention.f_proj", "ssm_f_a", "inner", "width", bias=False),
            *linear("attention.b_proj", "ssm_beta", "heads", "width", bias=False),
            layer("attention.A_log", "ssm_a", "heads", becomes=("heads", 1), transform=lambda sizes: Exponential()),
            layer("attention.dt_bias", "ssm_dt.bias", "inner"),
            *linear("attention.g_proj", "ssm_g_a", "inner", "width", bias=False),
            *norm("attention.o_norm", "ssm_norm", "linear_head"),
            *linear("attention.o_proj", "attn_output", "width", "inner", bias=False),
        ),
        *in_layers("dense", *decoder.GATED),
        *in_layers(
            "routed",
            *moe.EXPERTS,
            *moe.shared("mlp.shared_experts"),
            layer("mlp.gate.expert_bias", "exp_probs_b.bias", "experts"),
        ),
    ),
    sizes=KimiSizes,
    read_sizes=_read_sizes,
    describe=_describe,
)
FAMILIES = (LING3,)
