"""Step 3.5 and 3.7 Flash: layers with a window have heads of their own, and every head has a gate.

Sources: the code in the models' repositories, `modeling_step3p7.py` of transformers, `step35.cpp` of llama.cpp.
"""

from __future__ import annotations

from typing import Any

from quant.convert.base import Family, Known, count_layers, in_layers
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, moe, rotary
from quant.convert.families.decoder import layer, linear
from quant.convert.families.twofold import SEEING, SLIDING, TwofoldSizes, by_layer, kinds
from quant.errors import MalformedFile, UnsupportedModel

# llama.cpp rotates this part of a head in layers that see all, and the whole head in layers with a window.
_SHARE = 0.5


def _usual(config: ModelConfig) -> ModelConfig:
    """The settings by the names of transformers, for the layers alone: not for blocks that predict further tokens."""
    layers = count_layers(config)
    types = config.get("layer_types")
    if not isinstance(types, list) or len(types) < layers or any(not isinstance(kind, str) for kind in types):
        raise config.wrong("layer_types", f"a list that says of {layers} layers which attention they have")
    types = types[:layers]
    shares = config.get("partial_rotary_factors")
    usual = [1.0 if kind == "sliding_attention" else _SHARE for kind in types]
    if isinstance(shares, list) and shares[:layers] != usual:
        raise UnsupportedModel("its layers rotate other parts of their heads than llama.cpp does")
    bases = config.get("rope_theta")
    if isinstance(bases, list):
        if len(bases) < layers or any(type(each) not in (int, float) for each in bases):
            raise config.wrong("rope_theta", f"numbers for {layers} layers")
        by_kind = {kind: {base for base, each in zip(bases, types, strict=False) if each == kind} for kind in types}
        if any(len(found) > 1 for found in by_kind.values()):
            raise UnsupportedModel("its layers of one kind are rotated by several bases (`rope_theta`)")
        found = {kind: bases_of.copy().pop() for kind, bases_of in by_kind.items()}
        first = found.get("full_attention", bases[0])
        config = config.changed({"rope_theta": first, "rope_local_base_freq": found.get("sliding_attention", first)})
    else:
        config = config.filled({"rope_theta": 10000.0})
        config = config.changed({"rope_local_base_freq": config.number("rope_theta")})
    return config.changed(
        {
            "layer_types": types,
            "partial_rotary_factor": _SHARE,
            "num_key_value_heads": config.count("num_attention_groups"),
        }
    )


def _experts_from(config: ModelConfig, layers: int) -> list[str]:
    """The kind of every layer (dense or sparse); llama.cpp wants layers without experts first."""
    given = config.get("moe_layers_enum")
    parts = given.split(",") if isinstance(given, str) else given
    if not isinstance(parts, list) or not all(str(each).strip().isdecimal() for each in parts):
        raise config.wrong("moe_layers_enum", "the layers that have experts")
    numbers = {int(each) for each in parts}
    return ["sparse" if number in numbers else "dense" for number in range(layers)]


def _read_sizes(given: ModelConfig) -> TwofoldSizes:
    config = _usual(given)
    sizes = decoder.read_sizes(config)
    seeing, sliding = kinds(config, sizes.layers)
    other = config.part("attention_other_setting")
    window_heads = other.count("num_attention_heads", sizes.heads)
    window_keys = other.count("num_attention_groups", sizes.key_heads)
    if window_heads % window_keys or other.get("head_dim", sizes.head) != sizes.head:
        raise MalformedFile(f"{window_heads} attention heads cannot share {window_keys} key heads")
    usual = {
        "mlp_layer_types": _experts_from(config, sizes.layers),
        "n_routed_experts": config.count("moe_num_experts"),
        "n_shared_experts": 1,
    }
    routed = moe.read_routed_sizes(config.changed(usual), sizes)
    shared = config.count("share_expert_dim")
    return TwofoldSizes(
        **(vars(routed) | {"shared_expert": shared}),
        seeing=seeing,
        sliding=sliding,
        window_heads=window_heads,
        window_keys=window_keys,
        value=sizes.head,
        gate=1,
    )


def _limits(config: ModelConfig, key: str, layers: int) -> list[float]:
    """The largest number that goes through a layer's experts, 0 where any does."""
    values = config.get(key) or []
    if not isinstance(values, list) or any(each is not None and type(each) not in (int, float) for each in values):
        raise config.wrong(key, f"numbers for {layers} layers")
    return [float(each or 0) for each in [*values, *[0.0] * layers][:layers]]


def _describe(given: ModelConfig, sizes: TwofoldSizes) -> dict[str, Any]:
    config = _usual(given)
    expected: dict[str, Any] = {"use_moe_router_bias": True, "use_head_wise_attn_gate": True, "moe_every_n_layer": 1}
    expected |= {"moe_router_activation": "sigmoid", "zero_centered": True, "use_qk_norm": True}
    wrong = [key for key, value in expected.items() if config.get(key, value) != value]
    if wrong or rotary.kind_of(rotary.parameters(config)) not in ("default", "dynamic"):
        raise UnsupportedModel(
            f"it computes otherwise than llama.cpp's `step35` does (`{[*wrong, 'rope_scaling'][0]}`)"
        )
    windows = decoder.windows(config, sizes) if sizes.sliding else {}
    # llama.cpp halves it for the layers that see all.
    return {
        **decoder.describe(config, sizes),
        "rope.dimension_count": sizes.head,
        "attention.head_count": by_layer(sizes, sizes.heads, sizes.window_heads),
        "attention.head_count_kv": by_layer(sizes, sizes.key_heads, sizes.window_keys),
        **windows,
        **({"rope.freq_base_swa": rotary.local_base(config)} if windows else {}),
        "leading_dense_block_count": len(sizes.dense),
        **decoder.describe_experts(sizes.experts, config.count("moe_top_k")),
        "expert_feed_forward_length": sizes.expert,
        "expert_shared_feed_forward_length": sizes.shared_expert,
        "expert_weights_scale": decoder.scale(config, "moe_router_scaling_factor", 1.0),
        "expert_weights_norm": config.flag("norm_expert_weight", True),
        "expert_gating_func": 2,
        "swiglu_clamp_exp": _limits(config, "swiglu_limits", sizes.layers),
        "swiglu_clamp_shexp": _limits(config, "swiglu_limits_shared", sizes.layers),
    }


def _stacked(source: str, target: str, *shape: str) -> Known:
    return layer(f"{source}.weight", f"{target}.weight", "experts", *shape)


STEP = Family(
    classes=("Step3p5ForCausalLM",),
    architecture="step35",
    tensors=decoder.added_one(
        (
            *decoder.ENDS,
            *decoder.NORMS,
            *decoder.HEAD_NORMS,
            *in_layers("seeing", *SEEING, *linear("self_attn.g_proj", "attn_gate", "gated", "width", bias=False)),
            *in_layers(
                "sliding", *SLIDING, *linear("self_attn.g_proj", "attn_gate", "window_gated", "width", bias=False)
            ),
            *in_layers("dense", *decoder.GATED),
            *in_layers(
                "routed",
                layer("moe.gate.weight", "ffn_gate_inp.weight", "experts", "width"),
                layer("moe.router_bias", "exp_probs_b.bias", "experts"),
                _stacked("moe.gate_proj", "ffn_gate_exps", "expert", "width"),
                _stacked("moe.up_proj", "ffn_up_exps", "expert", "width"),
                _stacked("moe.down_proj", "ffn_down_exps", "width", "expert"),
                *moe.shared("share_expert"),
            ),
        )
    ),
    sizes=TwofoldSizes,
    read_sizes=_read_sizes,
    describe=_describe,
)
FAMILIES = (STEP,)
