"""Gemma 4 (text): heads of two sizes, layers that share keys and values, an embedding for every layer, experts.

Sources: `modeling_gemma4.py` and `configuration_gemma4.py` of transformers, `models/gemma4.cpp` of llama.cpp.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace
from typing import Any

from quant.convert.base import Family, Known, Layers, Target, Times, in_layers, tensor
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, gemma, rotary
from quant.convert.families.decoder import LAYER, layer, linear, norm
from quant.convert.families.moe import MixtureSizes
from quant.errors import MalformedFile, UnsupportedModel
from quant.plan import TensorPlan

_SLIDING, _FULL = "sliding_attention", "full_attention"
# A pair whose frequency is divided by this stands still.
_STILL = 1e30


@dataclass(frozen=True, kw_only=True)
class _Gemma4Sizes(MixtureSizes):
    """A layer sees the whole text (`full`) or a window (`sliding`). Heads of full layers have a size of their own.

    - The first layers have keys of their own (`full_own`, `sliding_own`); these are the `narrow_layers`, too.
    - The other layers share the keys and values of earlier ones (`full_sharing`, `sliding_sharing`). They are the
      `wide_layers`, in which the feed-forward part may be wider (`wide`).
    - Full layers that are not `full_valued` use their keys as values.
    - `embedded`, all layers or none, get `per_layer` values for every token from an embedding of their own.
    - `routed`, all layers or none, have experts.
    """

    full_head: int
    full_key_heads: int
    wide: int
    per_layer: int
    full: Layers
    sliding: Layers
    full_own: Layers
    sliding_own: Layers
    full_valued: Layers
    full_sharing: Layers
    sliding_sharing: Layers
    narrow_layers: Layers
    wide_layers: Layers
    embedded: Layers
    routed: Layers

    @property
    def full_queries(self) -> int:
        """The values of all query heads in full layers."""
        return self.heads * self.full_head

    @property
    def full_keys(self) -> int:
        """The values of all key heads in full layers."""
        return self.full_key_heads * self.full_head

    @property
    def all_layers(self) -> int:
        """The values of a token in the embeddings of all layers together."""
        return self.per_layer * self.layers


def _full_layers(config: ModelConfig, layers: int) -> Layers:
    """The layers that see the whole text; the others have a window."""
    kinds = config.get("layer_types")
    if kinds is None:
        kinds = [_SLIDING if (number + 1) % 6 else _FULL for number in range(layers)]
    if isinstance(kinds, list) and kinds:
        kinds = [*kinds[:-1], _FULL]  # whatever the file says, as transformers has it
    fine = isinstance(kinds, list) and len(kinds) == layers and all(kind in (_SLIDING, _FULL) for kind in kinds)
    if not fine:
        raise config.wrong("layer_types", f"a list of what {layers} layers are")
    return frozenset(number for number, kind in enumerate(kinds) if kind == _FULL)


def _full_config(config: ModelConfig, full: Layers, sliding: Layers) -> ModelConfig:
    """The settings of full layers, where they differ: as published, or as transformers 5 saves them."""
    found = {"head_dim": config.count("global_head_dim", 512)}
    if config.flag("attention_k_eq_v") and config.get("num_global_key_value_heads") is not None:
        found["num_key_value_heads"] = config.count("num_global_key_value_heads")
    if config.get("per_layer_config"):
        layers = config.part("per_layer_config")
        # transformers pads the numbers with zeros to one length.
        names = {int(name): name for name in layers.values if re.fullmatch("[0-9]{1,9}", name)}
        given = [layers.part(names.get(number, "")).values for number in sorted(full)]
        if any(each != given[0] for each in given) or names.keys() & sliding or len(names) < len(layers.values):
            raise UnsupportedModel("its layers differ by more than whether they have a window")
        found = dict(given[0])
    return config.changed(found)


def _read_sizes(config: ModelConfig) -> _Gemma4Sizes:
    sizes = decoder.read_sizes(config)
    every: Layers = frozenset(range(sizes.layers))
    none: Layers = frozenset()
    full = _full_layers(config, sizes.layers)
    sliding = every - full
    full_sizes = decoder.read_sizes(_full_config(config, full, sliding))
    first = sizes.layers - _count(config, "num_kv_shared_layers")
    # The layers that are shared from have to be the last ones that do not share.
    if first < sizes.layers and (first < 2 or first - 2 in full or first - 1 not in full):
        raise UnsupportedModel("its last layers share keys of other ones than llama.cpp has them share")
    for key in ("attention_bias", "use_bidirectional_attention"):
        if config.get(key) not in (None, False, "vision"):
            raise UnsupportedModel(f"it has `{key}`, which llama.cpp does not know")
    per_layer = _count(config, "hidden_size_per_layer_input")
    if per_layer and config.count("vocab_size_per_layer_input", 262_144) != sizes.vocabulary:
        raise MalformedFile("the embedding of the layers has other tokens than that of the model")
    experts = config.count("num_experts") if config.flag("enable_moe_block") else 0
    own = frozenset(range(first))
    return _Gemma4Sizes(
        **vars(sizes),
        experts=experts,
        expert=config.count("moe_intermediate_size") if experts else 0,
        full_head=full_sizes.head,
        full_key_heads=full_sizes.key_heads,
        wide=sizes.feed_forward * (2 if config.flag("use_double_wide_mlp") else 1),
        per_layer=per_layer,
        full=full,
        sliding=sliding,
        full_own=full & own,
        sliding_own=sliding & own,
        full_valued=none if config.flag("attention_k_eq_v") else full & own,
        full_sharing=full - own,
        sliding_sharing=sliding - own,
        narrow_layers=own,
        wide_layers=every - own,
        embedded=every if per_layer else none,
        routed=every if experts else none,
    )


def _count(config: ModelConfig, key: str) -> int:
    return config.count(key) if config.get(key) else 0


def _describe(config: ModelConfig, sizes: _Gemma4Sizes) -> dict[str, Any]:
    layers = sizes.layers
    full = [number in sizes.full for number in range(layers)]
    plain = {"rope_parameters": {"rope_theta": rotary.base(config, _FULL, 1e6)}}
    entries = {
        **decoder.describe(config.changed(plain), sizes),
        "attention.head_count_kv": [sizes.full_key_heads if whole else sizes.key_heads for whole in full],
        "attention.key_length": sizes.full_head,
        "attention.value_length": sizes.full_head,
        "attention.key_length_swa": sizes.head,
        "attention.value_length_swa": sizes.head,
        "attention.sliding_window": decoder.window(config) or config.count("max_position_embeddings", 2048),
        "attention.sliding_window_pattern": [not whole for whole in full],
        "attention.shared_kv_layers": len(sizes.wide_layers),
        "rope.dimension_count": sizes.full_head,
        "rope.dimension_count_swa": sizes.head,
        "rope.freq_base_swa": rotary.base(config, _SLIDING),
        "embedding_length_per_layer_input": sizes.per_layer,
    }
    if sizes.wide != sizes.feed_forward:
        wide = [sizes.wide if number in sizes.wide_layers else sizes.feed_forward for number in range(layers)]
        entries["feed_forward_length"] = wide
    entries["final_logit_softcapping"] = gemma.cap(config, "final_logit_softcapping", None)
    if sizes.experts:
        entries |= decoder.describe_experts(sizes.experts, config.count("top_k_experts"))
        entries["expert_feed_forward_length"] = sizes.expert
    return entries


def _tables(config: ModelConfig, sizes: _Gemma4Sizes) -> tuple[TensorPlan, ...]:
    """The divisors of frequencies in full layers: only the first pairs of every head are rotated."""
    scaling = rotary.parameters(config, _FULL)
    kind = scaling.get("rope_type") or "proportional"
    if kind not in ("proportional", "default") or scaling.number("factor", 1.0) != 1.0:
        raise UnsupportedModel(f"rotary scaling of the type `{ascii(kind)[:40]}` cannot be converted for Gemma 4")
    pairs = sizes.full_head // 2
    share = rotary.share(ModelConfig(config.name, {"rope_parameters": {_FULL: scaling.values}}), 0.25)
    turning = int(share * sizes.full_head // 2) if kind == "proportional" else pairs
    values = [1.0] * turning + [_STILL] * (pairs - turning)
    return (TensorPlan("rope_freqs.weight", (pairs,), "F32", values=struct.pack(f"<{pairs}f", *values)),)


def _attention(kind: str, head: str, queries: str, keys: str, valued: str) -> tuple[Known, ...]:
    """The attention of `full` or `sliding` layers; `valued` names the layers with values of their own."""
    own = (
        *linear("self_attn.k_proj", "attn_k", keys, "width", bias=False),
        *norm("self_attn.k_norm", "attn_k_norm", head),
    )
    values = linear("self_attn.v_proj", "attn_v", keys, "width", bias=False)
    # Layers that share keys and values may have some in the file, too, which no engine reads.
    unread = tuple(replace(known, targets=(), required=False) for known in (*own, *values))
    return (
        *in_layers(
            kind,
            *linear("self_attn.q_proj", "attn_q", queries, "width", bias=False),
            *norm("self_attn.q_norm", "attn_q_norm", head),
            *linear("self_attn.o_proj", "attn_output", "width", queries, bias=False),
        ),
        *in_layers(f"{kind}_own", *own),
        *in_layers(valued, *values),
        *in_layers(f"{kind}_sharing", *unread),
    )


_WIDE = (
    *linear("mlp.gate_proj", "ffn_gate", "wide", "width"),
    *linear("mlp.up_proj", "ffn_up", "wide", "width"),
    *linear("mlp.down_proj", "ffn_down", "width", "wide"),
)
GEMMA4 = Family(
    classes=("Gemma4ForCausalLM",),
    architecture="gemma4",
    tensors=(
        *decoder.ENDS,
        *_attention("sliding", "head", "queries", "keys", valued="sliding_own"),
        *_attention("full", "full_head", "full_queries", "full_keys", valued="full_valued"),
        *norm("input_layernorm", "attn_norm"),
        *norm("post_attention_layernorm", "post_attention_norm"),
        *norm("pre_feedforward_layernorm", "ffn_norm"),
        *norm("post_feedforward_layernorm", "post_ffw_norm"),
        layer("layer_scalar", "layer_output_scale.weight", 1),
        *in_layers("narrow_layers", *decoder.GATED),
        *in_layers("wide_layers", *_WIDE),
        *in_layers(
            "embedded",
            *linear("per_layer_input_gate", "inp_gate", "per_layer", "width", bias=False),
            *linear("per_layer_projection", "proj", "width", "per_layer", bias=False),
            *norm("post_per_layer_input_norm", "post_norm"),
            tensor("embed_tokens_per_layer.weight", "per_layer_token_embd.weight", "vocabulary", "all_layers"),
            tensor("per_layer_model_projection.weight", "per_layer_model_proj.weight", "all_layers", "width"),
            tensor("per_layer_projection_norm.weight", "per_layer_proj_norm.weight", "per_layer"),
        ),
        *in_layers(
            "routed",
            *linear("router.proj", "ffn_gate_inp", "experts", "width", bias=False),
            layer("router.scale", "ffn_gate_inp.scale", "width"),
            layer("router.per_expert_scale", "ffn_down_exps.scale", "experts"),
            Known(
                LAYER + "experts.gate_up_proj",
                (Target("blk.{}.ffn_gate_exps.weight"), Target("blk.{}.ffn_up_exps.weight")),
                ("experts", Times(2, "expert"), "width"),
            ),
            layer("experts.down_proj", "ffn_down_exps.weight", "experts", "width", "expert"),
            *norm("pre_feedforward_layernorm_2", "pre_ffw_norm_2"),
            *norm("post_feedforward_layernorm_1", "post_ffw_norm_1"),
            *norm("post_feedforward_layernorm_2", "post_ffw_norm_2"),
        ),
    ),
    sizes=_Gemma4Sizes,
    read_sizes=_read_sizes,
    describe=_describe,
    computed=_tables,
    activations=("gelu_pytorch_tanh", "gelu"),
    tied=True,
)
FAMILIES = (GEMMA4,)
