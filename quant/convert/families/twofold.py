"""Mixtures whose layers with a window have heads of their own: Laguna, MiMo V2.

Sources: `modeling_laguna.py`, `modeling_mimo_v2_flash.py` of transformers, `laguna.cpp` and `mimo2.cpp` of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quant.convert.base import Family, Known, Layers, count_layers, in_layers
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, moe, rotary
from quant.convert.families.decoder import layer, linear
from quant.convert.families.moe import RoutedSizes
from quant.errors import MalformedFile, UnsupportedModel


@dataclass(frozen=True, kw_only=True)
class TwofoldSizes(RoutedSizes):
    """The layers `seeing` see all, and the layers `sliding` have `window_heads` heads with `window_keys` key heads.

    A value has `value` numbers. The gate behind the attention, where there is one, has `gate` numbers for each head.
    """

    seeing: Layers
    sliding: Layers
    window_heads: int
    window_keys: int
    value: int
    gate: int

    @property
    def values(self) -> int:
        """The values of all key heads."""
        return self.key_heads * self.value

    @property
    def attended(self) -> int:
        """The values that come out of the attention."""
        return self.heads * self.value

    @property
    def gated(self) -> int:
        """The numbers of a gate."""
        return self.heads * self.gate

    @property
    def window_queries(self) -> int:
        """The values of all query heads, in a layer with a window."""
        return self.window_heads * self.head

    @property
    def window_key_values(self) -> int:
        """The values of all keys, in a layer with a window."""
        return self.window_keys * self.head

    @property
    def window_values(self) -> int:
        """The values of all key heads, in a layer with a window."""
        return self.window_keys * self.value

    @property
    def window_attended(self) -> int:
        """The values that come out of the attention, in a layer with a window."""
        return self.window_heads * self.value

    @property
    def window_gated(self) -> int:
        """The numbers of a gate, in a layer with a window."""
        return self.window_heads * self.gate


def _attention(*names: str) -> tuple[Known, ...]:
    queries, keys, values, attended = names
    return (
        *linear("self_attn.q_proj", "attn_q", queries, "width", bias=None),
        *linear("self_attn.k_proj", "attn_k", keys, "width", bias=None),
        *linear("self_attn.v_proj", "attn_v", values, "width", bias=None),
        *linear("self_attn.o_proj", "attn_output", "width", attended, bias=False),
    )


SEEING = _attention("queries", "keys", "values", "attended")
SLIDING = _attention("window_queries", "window_key_values", "window_values", "window_attended")


def kinds(config: ModelConfig, layers: int) -> tuple[Layers, Layers]:
    """The layers that see all, and the layers with a window."""
    known = ("full_attention", "sliding_attention")
    given = config.get("layer_types")
    if not isinstance(given, list) or len(given) != layers or any(kind not in known for kind in given):
        raise config.wrong("layer_types", f"a list that says of {layers} layers which attention they have")
    sliding = frozenset(number for number, kind in enumerate(given) if kind == known[1])
    return frozenset(range(layers)) - sliding, sliding


def _describe_windows(config: ModelConfig, sizes: TwofoldSizes) -> dict[str, Any]:
    """The entries of the layers with a window, where there are any."""
    if not sizes.sliding:
        config.without_effect("sliding_window")
        return {}
    return {**decoder.windows(config, sizes), "rope.freq_base_swa": rotary.local_base(config)}


def by_layer(sizes: TwofoldSizes, seeing: int, sliding: int) -> list[int]:
    """A number for every layer, by its kind."""
    return [sliding if number in sizes.sliding else seeing for number in range(sizes.layers)]


def _one(config: ModelConfig, counts: list[Any], layers: Layers, otherwise: int) -> int:
    """The number of heads that all of these layers have."""
    found: set[int] = {counts[number] for number in layers if type(counts[number]) is int} or {otherwise}
    if len(found) > 1 or any(type(counts[number]) is not int or counts[number] <= 0 for number in layers):
        raise UnsupportedModel("its layers of one kind have several numbers of heads (`num_attention_heads_per_layer`)")
    return found.pop()


def _read_laguna_sizes(config: ModelConfig) -> TwofoldSizes:
    heads, layers = config.count("num_attention_heads"), count_layers(config)
    counts = config.get("num_attention_heads_per_layer") or [heads] * layers
    if not isinstance(counts, list) or len(counts) != layers:
        raise config.wrong("num_attention_heads_per_layer", f"the numbers of heads of {layers} layers")
    filled = config.filled({"layer_types": ["full_attention"] * layers})
    seeing, sliding = kinds(filled, layers)
    heads = _one(config, counts, seeing, heads)
    gating = config.get("gating", True)
    if gating not in (True, "per-head", "per-element"):
        raise UnsupportedModel("it gates its attention otherwise than llama.cpp does (`gating`)")
    sizes = decoder.read_sizes(config.changed({"num_attention_heads": heads}))
    window_heads = _one(config, counts, sliding, heads)
    if window_heads % sizes.key_heads:
        raise MalformedFile(f"{window_heads} attention heads cannot share {sizes.key_heads} key heads")
    shared = config.count("shared_expert_intermediate_size")
    types = config.get("mlp_layer_types") or ["dense"] + ["sparse"] * (layers - 1)
    usual = {"mlp_layer_types": types, "n_routed_experts": config.count("num_experts"), "n_shared_experts": 1}
    routed = moe.read_routed_sizes(config.changed(usual), sizes)
    return TwofoldSizes(
        **(vars(routed) | {"shared_expert": shared}),
        seeing=seeing,
        sliding=sliding,
        window_heads=window_heads,
        window_keys=sizes.key_heads,
        value=sizes.head,
        gate=sizes.head if gating == "per-element" else 1,
    )


def _describe_laguna(config: ModelConfig, sizes: TwofoldSizes) -> dict[str, Any]:
    if config.get("moe_router_logit_softcapping") or config.flag("moe_apply_router_weight_on_input"):
        raise UnsupportedModel("it chooses its experts otherwise than llama.cpp does (`moe_router_logit_softcapping`)")
    config.without_effect("moe_router_logit_softcapping", "moe_apply_router_weight_on_input")
    windows = _describe_windows(config, sizes)
    if windows:
        share = config.part("rope_parameters").part("sliding_attention").number("partial_rotary_factor", 1.0)
        windows["rope.dimension_count_swa"] = int(sizes.head * share)
    return {
        **decoder.describe(config, sizes),
        "attention.head_count": by_layer(sizes, sizes.heads, sizes.window_heads),
        **windows,
        "leading_dense_block_count": len(sizes.dense),
        **decoder.describe_experts(sizes.experts, config.count("num_experts_per_tok")),
        "expert_feed_forward_length": sizes.expert,
        "expert_shared_feed_forward_length": sizes.shared_expert,
        "expert_weights_scale": decoder.scale(config, "moe_routed_scaling_factor", 1.0),
        "expert_weights_norm": True,
        "expert_gating_func": 2,
    }


LAGUNA = Family(
    classes=("LagunaForCausalLM",),
    architecture="laguna",
    tensors=(
        *decoder.ENDS,
        *decoder.NORMS,
        *decoder.HEAD_NORMS,
        *in_layers("seeing", *SEEING, *linear("self_attn.g_proj", "attn_gate", "gated", "width", bias=False)),
        *in_layers("sliding", *SLIDING, *linear("self_attn.g_proj", "attn_gate", "window_gated", "width", bias=False)),
        *in_layers("dense", *decoder.GATED),
        *in_layers(
            "routed",
            *moe.EXPERTS,
            *moe.shared("mlp.shared_expert"),
            layer("mlp.experts.e_score_correction_bias", "exp_probs_b.bias", "experts"),
        ),
    ),
    sizes=TwofoldSizes,
    read_sizes=_read_laguna_sizes,
    describe=_describe_laguna,
)


def _usual_mimo(config: ModelConfig) -> ModelConfig:
    """The settings of the code that the models came with, by the names of transformers."""
    layers = count_layers(config)
    pattern, experts = config.get("hybrid_layer_pattern"), config.get("moe_layer_freq")
    epsilon = config.get("layernorm_epsilon")
    if epsilon is not None:
        config = config.changed({"rms_norm_eps": epsilon, "layernorm_epsilon": None})
    if isinstance(pattern, list) and config.get("layer_types") is None:
        config = config.changed(
            {"layer_types": ["sliding_attention" if kind else "full_attention" for kind in pattern]}
        )
    if isinstance(experts, list) and config.get("mlp_layer_types") is None:
        config = config.changed({"mlp_layer_types": ["sparse" if each else "dense" for each in experts]})
    if config.get("swa_rope_theta", rotary.local_base(config)) != rotary.local_base(config):
        raise UnsupportedModel("its `swa_rope_theta` is not the usual one, and the class of transformers has no other")
    usual = ["full_attention" if not n or not (n + 1) % 6 else "sliding_attention" for n in range(layers)]
    return config.filled({"layer_types": usual, "mlp_layer_types": ["dense"] + ["sparse"] * (layers - 1)})


def _read_mimo_sizes(given: ModelConfig) -> TwofoldSizes:
    config = _usual_mimo(given)
    sizes = decoder.read_sizes(config)
    seeing, sliding = kinds(config, sizes.layers)
    if not sliding:
        raise UnsupportedModel("none of its layers has a window (`layer_types`), and llama.cpp wants one in this kind")
    window_keys = config.count("swa_num_key_value_heads", 2 * sizes.key_heads)
    if sizes.heads % window_keys:
        raise MalformedFile(f"{sizes.heads} attention heads cannot share {window_keys} key heads")
    same = {"swa_num_attention_heads": sizes.heads, "swa_head_dim": sizes.head, "swa_v_head_dim": None}
    same["swa_v_head_dim"] = config.count("v_head_dim")
    other = [key for key, value in same.items() if config.get(key, value) != value]
    if other or config.flag("add_full_attention_sink_bias") or not config.flag("add_swa_attention_sink_bias", True):
        raise UnsupportedModel(f"its layers with a window are built otherwise (`{[*other, 'attention_sink_bias'][0]}`)")
    routed = moe.read_routed_sizes(config.changed({"n_shared_experts": 1}), sizes)
    return TwofoldSizes(
        **vars(routed),
        seeing=seeing,
        sliding=sliding,
        window_heads=sizes.heads,
        window_keys=window_keys,
        value=config.count("v_head_dim"),
        gate=1,
    )


def _describe_mimo(given: ModelConfig, sizes: TwofoldSizes) -> dict[str, Any]:
    config = _usual_mimo(given)
    expected = {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True, "n_shared_experts": None}
    expected["routed_scaling_factor"] = 1.0
    other = [key for key, value in expected.items() if config.get(key, value) not in (value, None)]
    if other or config.count("n_group", 1) != config.count("topk_group", 1):
        raise UnsupportedModel(f"it chooses its experts otherwise than llama.cpp does (`{[*other, 'n_group'][0]}`)")
    scale = config.get("attention_value_scale")
    own = config.part("rope_parameters").part("sliding_attention").get("partial_rotary_factor")
    if own is not None and own != rotary.share(config):
        raise UnsupportedModel("its layers with a window rotate another part of a head, and llama.cpp the same")
    return {
        **decoder.describe(config, sizes),
        "attention.value_length": sizes.value,
        "attention.head_count_kv": by_layer(sizes, sizes.key_heads, sizes.window_keys),
        **_describe_windows(config, sizes),
        **({} if scale is None else {"attention.value_scale": config.number("attention_value_scale")}),
        **decoder.describe_experts(sizes.experts, config.count("num_experts_per_tok")),
        "expert_feed_forward_length": sizes.expert,
    }


MIMO = Family(
    classes=("MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM"),
    architecture="mimo2",
    tensors=(
        *decoder.ENDS,
        *decoder.NORMS,
        *in_layers("seeing", *SEEING),
        *in_layers("sliding", *SLIDING, layer("self_attn.attention_sink_bias", "attn_sinks.weight", "heads")),
        *in_layers("dense", *decoder.GATED),
        *in_layers("routed", *moe.EXPERTS),
        *moe.PREFERENCE,
    ),
    sizes=TwofoldSizes,
    read_sizes=_read_mimo_sizes,
    describe=_describe_mimo,
)
FAMILIES = (LAGUNA, MIMO)
