"""Gemma 4 (text): heads of two sizes, layers that share keys and values, an embedding for every layer, experts.

Sources: `modeling_gemma4.py` and `configuration_gemma4.py` of transformers, `models/gemma4.cpp` of llama.cpp.
"""

from __future__ import annotations

import struct
from typing import Any

from quant.convert.base import Family, Known, Sizes, check_layers
from quant.convert.config import Config
from quant.convert.families import decoder, rotary
from quant.convert.families.decoder import layer, linear, norm
from quant.convert.families.recurrent import masks, some
from quant.errors import MalformedFile, UnsupportedModel
from quant.gguf.header import MAX_BLOCKS
from quant.plan import TensorPlan

_SLIDING, _FULL = "sliding_attention", "full_attention"
# A pair that is divided by so much stands still.
_STILL = 1e30


def _attending(config: Config, layers: int) -> list[bool]:
    """Which layers see the whole text; the others have a window."""
    kinds = config.get("layer_types")
    if kinds is None:
        kinds = [_SLIDING if (number + 1) % 6 else _FULL for number in range(min(layers, MAX_BLOCKS))]
    fine = isinstance(kinds, list) and len(kinds) == layers and all(kind in (_SLIDING, _FULL) for kind in kinds)
    if not fine or kinds[-1] != _FULL:
        raise config.wrong("layer_types", f"a list of what {layers} layers are, the last one with full attention")
    return [kind == _FULL for kind in kinds]


def _whole(config: Config, whole: list[bool]) -> Config:
    """The settings of layers that see the whole text, where they differ: as published, or as transformers 5 saves."""
    found = {"head_dim": config.count("global_head_dim", 512)}
    if config.flag("attention_k_eq_v") and config.get("num_global_key_value_heads") is not None:
        found["num_key_value_heads"] = config.count("num_global_key_value_heads")
    if config.get("per_layer_config"):
        layers = config.part("per_layer_config")
        given = [layers.part(str(number)).values for number, full in enumerate(whole) if full]
        others = {str(number) for number, full in enumerate(whole) if not full}
        if any(each != given[0] for each in given) or others & layers.values.keys():
            raise UnsupportedModel("its layers differ by more than whether they have a window")
        found = dict(given[0])
    return config.changed(found)


def _read_sizes(config: Config) -> dict[str, int]:
    sizes = decoder.read_sizes(config)
    layers = sizes["layers"]
    check_layers(sizes)
    whole = _attending(config, layers)
    full = decoder.read_sizes(_whole(config, whole))
    first = layers - _count(config, "num_kv_shared_layers")
    if first < layers and (first < 2 or whole[first - 2 : first] != [False, True]):
        raise UnsupportedModel("its last layers share keys of other ones than llama.cpp has them share")
    for key in ("attention_bias", "use_bidirectional_attention"):
        if config.get(key) not in (None, False, "vision"):
            raise UnsupportedModel(f"it has `{key}`, which llama.cpp does not know")
    masked = masks(whole)
    own = (1 << first) - 1
    unequal = not config.flag("attention_k_eq_v")
    wide = sizes["feed_forward"] * (2 if config.flag("use_double_wide_mlp") else 1)
    each = _count(config, "hidden_size_per_layer_input")
    if each and config.count("vocab_size_per_layer_input", 262_144) != sizes["vocabulary"]:
        raise MalformedFile("the embedding of the layers has other tokens than that of the model")
    experts = config.count("num_experts") if config.flag("enable_moe_block") else 0
    return {
        **{**sizes, "first": first, "wide": wide, "one": 1, "each": each, "all": each * layers},
        **{f"full_{key}": full[key] for key in ("head", "shared", "queries", "keys", "rotated")},
        **{"full": masked["attending"], "sliding": masked["others"], "per_layer": (1 << layers) - 1 if each else 0},
        **{"full_own": own & masked["attending"], "sliding_own": own & masked["others"]},
        **{"full_sharing": masked["attending"] & ~own, "sliding_sharing": masked["others"] & ~own},
        "full_valued": own & masked["attending"] if unequal else 0,
        **{"experts": experts, "mixtures": (1 << layers) - 1 if experts else 0},
        **({"expert": config.count("moe_intermediate_size")} if experts else {"expert": 1}),
        "two_expert": 2 * config.count("moe_intermediate_size") if experts else 2,
    }


def _count(config: Config, key: str) -> int:
    return config.count(key) if config.get(key) else 0


def _describe(config: Config, sizes: Sizes) -> dict[str, Any]:
    layers = sizes["layers"]
    whole = [bool(sizes["full"] >> number & 1) for number in range(layers)]
    plain = {"rope_parameters": {"rope_theta": rotary.base(config, _FULL, 1e6)}}
    entries = {
        **decoder.describe(config.changed(plain), sizes),
        "attention.head_count_kv": [sizes["full_shared"] if full else sizes["shared"] for full in whole],
        "attention.key_length": sizes["full_head"],
        "attention.value_length": sizes["full_head"],
        "attention.key_length_swa": sizes["head"],
        "attention.value_length_swa": sizes["head"],
        "attention.sliding_window": config.count("sliding_window", 512),
        "attention.sliding_window_pattern": [not full for full in whole],
        "attention.shared_kv_layers": layers - sizes["first"],
        "rope.dimension_count": sizes["full_head"],
        "rope.dimension_count_swa": sizes["head"],
        "rope.freq_base_swa": rotary.base(config, _SLIDING),
        "embedding_length_per_layer_input": sizes["each"],
    }
    if sizes["wide"] != sizes["feed_forward"]:
        wide = [sizes["feed_forward"] if number < sizes["first"] else sizes["wide"] for number in range(layers)]
        entries["feed_forward_length"] = wide
    if config.get("final_logit_softcapping") is not None:
        entries["final_logit_softcapping"] = config.number("final_logit_softcapping")
    if sizes["experts"]:
        entries |= decoder.describe_experts(sizes["experts"], config.count("top_k_experts"))
        entries["expert_feed_forward_length"] = sizes["expert"]
    return entries


def _tables(config: Config, sizes: Sizes) -> tuple[TensorPlan, ...]:
    """Which pairs turn in layers that see the whole text: the first ones of every head."""
    scaling = rotary.parameters(config, _FULL)
    kind = scaling.get("rope_type") or "proportional"
    if kind not in ("proportional", "default") or scaling.number("factor", 1.0) != 1.0:
        raise UnsupportedModel(f"rotary scaling of the type `{ascii(kind)[:40]}` cannot be converted for Gemma 4")
    pairs = sizes["full_head"] // 2
    share = rotary.share(Config(config.name, {"rope_parameters": {_FULL: scaling.values}}), 0.25)
    turning = int(share * sizes["full_head"] // 2) if kind == "proportional" else pairs
    values = [1.0] * turning + [_STILL] * (pairs - turning)
    return (TensorPlan("rope_freqs.weight", (pairs,), "F32", values=struct.pack(f"<{pairs}f", *values)),)


def _attention(kind: str, head: str, queries: str, keys: str) -> tuple[Known, ...]:
    """Of the layers of a kind; of those whose keys are others' files may hold what nobody reads."""
    own = (*linear("self_attn.k_proj", "attn_k", keys, "width", False), *norm("self_attn.k_norm", "attn_k_norm", head))
    values = linear("self_attn.v_proj", "attn_v", keys, "width", False)
    return (
        *some(kind, *linear("self_attn.q_proj", "attn_q", queries, "width", False)),
        *some(kind, *norm("self_attn.q_norm", "attn_q_norm", head)),
        *some(kind, *linear("self_attn.o_proj", "attn_output", "width", queries, False)),
        *some(f"{kind}_own", *own),
        *some("full_valued" if kind == "full" else "sliding_own", *values),
        *(each._replace(target="", required=False) for each in some(f"{kind}_sharing", *own, *values)),
    )


def _wider(tensors: tuple[Known, ...]) -> tuple[Known, ...]:
    shapes = (tuple("wide" if size == "feed_forward" else size for size in known.shape) for known in tensors)
    return tuple(known._replace(shape=shape) for known, shape in zip(tensors, shapes, strict=True))


GEMMA4 = Family(
    classes=("Gemma4ForCausalLM",),
    architecture="gemma4",
    tensors=(
        *(decoder.EMBEDDING, *decoder.final_norm(), decoder.OUTPUT),
        *_attention("sliding", "head", "queries", "keys"),
        *_attention("full", "full_head", "full_queries", "full_keys"),
        *norm("input_layernorm", "attn_norm"),
        *norm("post_attention_layernorm", "post_attention_norm"),
        *norm("pre_feedforward_layernorm", "ffn_norm"),
        *norm("post_feedforward_layernorm", "post_ffw_norm"),
        layer("layer_scalar", "layer_output_scale.weight", "one"),
        *decoder.only(decoder.GATED, "", "first"),
        *decoder.only(_wider(decoder.GATED), "first", "layers"),
        *some(
            "per_layer",
            *linear("per_layer_input_gate", "inp_gate", "each", "width", bias=False),
            *linear("per_layer_projection", "proj", "width", "each", bias=False),
            *norm("post_per_layer_input_norm", "post_norm"),
            Known("embed_tokens_per_layer.weight", "per_layer_token_embd.weight", ("vocabulary", "all")),
            Known("per_layer_model_projection.weight", "per_layer_model_proj.weight", ("all", "width")),
            Known("per_layer_projection_norm.weight", "per_layer_proj_norm.weight", ("each",)),
        ),
        *some(
            "mixtures",
            *linear("router.proj", "ffn_gate_inp", "experts", "width", bias=False),
            layer("router.scale", "ffn_gate_inp.scale", "width"),
            layer("router.per_expert_scale", "ffn_down_exps.scale", "experts"),
            layer(
                "experts.gate_up_proj",
                "ffn_gate_exps.weight blk.{}.ffn_up_exps.weight",
                *("experts", "two_expert", "width"),
            ),
            layer("experts.down_proj", "ffn_down_exps.weight", "experts", "width", "expert"),
            *norm("pre_feedforward_layernorm_2", "pre_ffw_norm_2"),
            *norm("post_feedforward_layernorm_1", "post_ffw_norm_1"),
            *norm("post_feedforward_layernorm_2", "post_ffw_norm_2"),
        ),
    ),
    read_sizes=_read_sizes,
    describe=_describe,
    computed=_tables,
    activations=("gelu_pytorch_tanh",),
    tied=True,
)
FAMILIES = (GEMMA4,)
