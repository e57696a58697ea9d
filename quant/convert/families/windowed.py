"""Decoders with windows in most layers: Mellum 2 and Maple (experts), Granite with windows (both), Spark 2.5.

Sources: `modeling_mellum.py`, `modeling_granite_swa.py` and `modeling_granitemoe_swa.py` of transformers, the code in
the other models' repositories, `mellum.cpp`, `maple.cpp`, `granite-swa.cpp` and `spark2-5.cpp` of llama.cpp.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quant.convert.base import Family, Known, Target, Times
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, llama, moe, rotary
from quant.convert.families.decoder import LAYER, DecoderSizes, layer, linear, router
from quant.convert.families.moe import MixtureSizes
from quant.errors import UnsupportedModel


def _describe_mellum(config: ModelConfig, sizes: MixtureSizes) -> dict[str, Any]:
    if not config.flag("norm_topk_prob"):
        raise UnsupportedModel("it weighs its experts otherwise than llama.cpp does (`norm_topk_prob`)")
    if config.get("mlp_layer_types") not in (None, ["sparse"] * sizes.layers):
        raise UnsupportedModel("it has layers without experts (`mlp_layer_types`), and llama.cpp's `mellum` has none")
    config.without_effect("mtp_layer_types", "mtp_mlp_layer_types")
    windows = decoder.windows(config, sizes, optional=True)
    if sizes.rotated != sizes.head:
        raise UnsupportedModel("it rotates a part of its heads, and llama.cpp's `mellum` the whole of them")
    if windows and rotary.local_base(config) != rotary.base(config):
        raise UnsupportedModel("its layers with a window have a base of their own, and llama.cpp's `mellum` has one")
    return {
        **decoder.describe(config, sizes),
        **decoder.describe_experts(sizes.experts, config.count("num_experts_per_tok")),
        "expert_feed_forward_length": sizes.expert,
        **windows,
    }


MELLUM = replace(moe.QWEN3_MOE, classes=("MellumForCausalLM",), architecture="mellum", describe=_describe_mellum)


def _describe_granite(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    """Every fourth layer sees all where the settings do not say; layers with a base of 0 are not rotated."""
    types = ["sliding_attention" if number % 4 else "full_attention" for number in range(sizes.layers)]
    given = config.get("layer_types")
    windows = decoder.windows(config.changed({"layer_types": types if given is None else given}), sizes)
    kind = rotary.kind_of(rotary.parameters(config))
    if kind not in ("default", "dynamic"):
        raise UnsupportedModel(f"its rotary scaling is `{kind}`, which llama.cpp has not for each layer's base")
    base = rotary.base(config)
    bases = config.get("layer_rope_theta") or [base] * sizes.layers
    fine = isinstance(bases, list) and len(bases) == sizes.layers and all(type(each) in (int, float) for each in bases)
    if not fine:
        raise config.wrong("layer_rope_theta", f"a list of numbers for {sizes.layers} layers")
    turned = {float(each) for each in bases if each}
    if len(turned) > 1:
        raise UnsupportedModel("its layers are rotated by several bases (`layer_rope_theta`), which llama.cpp has not")
    pattern = [bool(each) for each in bases]
    return {
        **llama.describe_granite(config.changed({"rope_parameters": None, "rope_scaling": None}), sizes),
        **windows,
        "rope.freq_base": turned.pop() if turned else base,
        **({} if all(pattern) else {"attention.rope_pattern": pattern}),
    }


_SINKS = layer("self_attn.sinks", "attn_sinks.weight", "heads")
GRANITE_SWA = replace(
    llama.GRANITE,
    classes=("GraniteSWAForCausalLM",),
    architecture="granite_swa",
    tensors=(*llama.GRANITE.tensors, _SINKS),
    describe=_describe_granite,
    computed=lambda config, sizes: (),
)


def _read_sizes(config: ModelConfig) -> MixtureSizes:
    sizes = decoder.read_sizes(config)
    if not config.get("shared_intermediate_size"):
        raise UnsupportedModel("it has no part that answers always, and llama.cpp's `granite_swa` wants one")
    return MixtureSizes(
        **vars(sizes),
        experts=config.count("num_local_experts"),
        expert=sizes.feed_forward,
        shared_expert=config.count("shared_intermediate_size"),
    )


def _describe_experts(config: ModelConfig, sizes: MixtureSizes) -> dict[str, Any]:
    return {
        **_describe_granite(config, sizes),
        **decoder.describe_experts(sizes.experts, config.count("num_experts_per_tok")),
        "expert_shared_feed_forward_length": sizes.shared_expert,
    }


GRANITE_MOE_SWA = Family(
    classes=("GraniteMoeSWAForCausalLM",),
    architecture="granite_swa",
    tensors=(
        *decoder.paired(decoder.UNGATED),
        _SINKS,
        router("block_sparse_moe.router"),
        Known(
            LAYER + "block_sparse_moe.experts.gate_up_proj",
            (Target("blk.{}.ffn_gate_up_exps.weight"),),
            ("experts", Times(2, "expert"), "width"),
        ),
        layer("block_sparse_moe.experts.down_proj", "ffn_down_exps.weight", "experts", "width", "expert"),
        *linear("shared_mlp.input_linear", "ffn_up_shexp", Times(2, "shared_expert"), "width", bias=False),
        *linear("shared_mlp.output_linear", "ffn_down_shexp", "width", "shared_expert", bias=False),
    ),
    sizes=MixtureSizes,
    read_sizes=_read_sizes,
    describe=_describe_experts,
)
# The bound of both factors in the product of gate and up, which the code of the models has built in.
_BOUND = 7.0


def _fourth_sees_all(config: ModelConfig, layers: int) -> ModelConfig:
    """The settings with the kinds of layers: each fourth sees all where nothing else is said."""
    kinds = ["full_attention" if (number + 1) % 4 == 0 else "sliding_attention" for number in range(layers)]
    return config.filled({"layer_types": kinds}) if config.get("layer_types") is None else config


def _read_maple_sizes(config: ModelConfig) -> MixtureSizes:
    expert = config.count("moe_intermediate_size")
    # The width of layers without experts, of which there are none.
    sizes = decoder.read_sizes(config.filled({"intermediate_size": expert}))
    return MixtureSizes(**vars(sizes), experts=config.count("num_experts"), expert=expert)


def _describe_maple(config: ModelConfig, sizes: MixtureSizes) -> dict[str, Any]:
    expected = {
        "num_shared_experts": 0,
        "norm_topk_prob": True,
        "nope_on_global_attention": True,
        "use_qk_norm": True,
        "moe_router_enable_expert_bias": False,
        "swiglu_limit": _BOUND,
        "use_bias": False,
    }
    wrong = [key for key, value in expected.items() if config.get(key, value) != value]
    if wrong or rotary.kind_of(rotary.parameters(config)) not in ("default", "dynamic"):
        raise UnsupportedModel(f"it computes otherwise than llama.cpp's `maple` does (`{[*wrong, 'rope_scaling'][0]}`)")
    return {
        **decoder.describe(config.filled({"intermediate_size": sizes.expert}), sizes),
        **decoder.describe_experts(sizes.experts, config.count("num_experts_per_tok")),
        "expert_feed_forward_length": sizes.expert,
        "swiglu_clamp_exp": [_BOUND] * sizes.layers,
        **decoder.windows(_fourth_sees_all(config, sizes.layers), sizes),
    }


MAPLE = replace(
    moe.QWEN3_MOE,
    classes=("MapleForCausalLM",),
    architecture="maple",
    tensors=(*decoder.UNGATED, *decoder.HEAD_NORMS, *moe.EXPERTS),
    read_sizes=_read_maple_sizes,
    describe=_describe_maple,
)


def _describe_spark(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    expected = {"gate_attn_act_mode": "sigmoid", "headwise_attn_output_gate": True}
    wrong = [key for key, value in expected.items() if config.get(key, value) != value]
    own = config.part("rope_parameters").part("sliding_attention")
    if any(rotary.kind_of(each) not in ("default", "dynamic") for each in (own, rotary.parameters(config))):
        wrong.append("rope_parameters")
    if wrong:
        raise UnsupportedModel(f"it computes otherwise than llama.cpp's `spark2_5` does (`{wrong[0]}`)")
    return {
        **decoder.describe(config, sizes),
        **decoder.windows(_fourth_sees_all(config, sizes.layers), sizes),
        "rope.freq_base_swa": rotary.local_base(config),
        "rope.dimension_count_swa": int(sizes.head * own.number("partial_rotary_factor", 1.0)),
    }


def _usual_spark(config: ModelConfig) -> ModelConfig:
    """The settings with the rotation that the class has where nothing is said of it."""
    usual = {
        "full_attention": {"rope_theta": 5e6, "partial_rotary_factor": 0.25},
        "sliding_attention": {"rope_theta": 1e4, "partial_rotary_factor": 1.0},
    }
    return config if config.get("rope_parameters") else config.changed({"rope_parameters": usual})


SPARK = Family(
    classes=("Spark2_5ForCausalLM",),
    architecture="spark2_5",
    tensors=(
        *decoder.ENDS,
        *decoder.NORMS,
        *linear("self_attn.q_k_v_proj", "attn_qkv", "attention", "width", bias=False),
        *linear("self_attn.g_proj", "attn_gate", "heads", "width", bias=False),
        *linear("self_attn.o_proj", "attn_output", "width", "queries", bias=False),
        *(row for row in decoder.GATED if not row.source.endswith(".bias")),
    ),
    sizes=DecoderSizes,
    read_sizes=lambda config: decoder.read_sizes(_usual_spark(config)),
    describe=lambda config, sizes: _describe_spark(_usual_spark(config), sizes),
    activations=("gelu",),
)
FAMILIES = (MELLUM, GRANITE_SWA, GRANITE_MOE_SWA, MAPLE, SPARK)
