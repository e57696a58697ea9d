"""Decoders with windows in most layers: Mellum 2 (experts), Granite with windows (dense and with experts).

Sources: `modeling_mellum.py`, `modeling_granite_swa.py` and `modeling_granitemoe_swa.py` of transformers, `mellum.cpp`
and `granite-swa.cpp` of llama.cpp.
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
FAMILIES = (MELLUM, GRANITE_SWA, GRANITE_MOE_SWA)
