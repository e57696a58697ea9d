"""Qwen 3.5 and Qwen3-Next: linear attention (gated delta nets) in most layers, gated attention in the others.

Sources: `modeling_qwen3_5.py`, `modeling_qwen3_5_moe.py` and `modeling_qwen3_next.py` of transformers, `qwen35.cpp` and
its neighbours of llama.cpp. The graph for Qwen 3.5 repeats the key heads one after the other, so that the value heads
come in another order (`quant/convert/reordering.py`); Qwen3-Next's stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quant.convert.base import Family, Known, Layers, Target, Times, in_layers
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, moe, predicting, recurrent, rotary
from quant.convert.families.decoder import LAYER, DecoderSizes, layer, linear, norm
from quant.convert.families.moe import MixtureSizes
from quant.convert.reordering import TakeBlocks, TileColumns, TileRates, TileRows
from quant.errors import MalformedFile, UnsupportedModel
from quant.plan import Reversible

_LINEAR, _FULL = "linear_attention", "full_attention"
# Sections by which heads are turned where the file says nothing; a text has one position for all of them.
_SECTIONS = [11, 11, 10]


@dataclass(frozen=True, kw_only=True)
class _LinearSizes(DecoderSizes):
    """A layer is `remembering` by `values` heads of `linear_head`, which share `groups` key heads, or `attending`."""

    groups: int
    values: int
    linear_head: int
    kernel: int
    remembering: Layers
    attending: Layers

    @property
    def inner(self) -> int:
        """The values of all value heads."""
        return self.values * self.linear_head

    @property
    def each(self) -> int:
        """The value heads of a key head."""
        return self.values // self.groups

    @property
    def selected(self) -> int:
        """The values of all queries, which are as many as all keys have."""
        return self.groups * self.linear_head

    @property
    def convolved(self) -> int:
        """The channels of the convolution: queries, keys and values."""
        return 2 * self.selected + self.inner

    @property
    def projected(self) -> int:
        """The rows of Qwen3-Next's one matrix for queries, keys, values and gates."""
        return self.convolved + self.inner


@dataclass(frozen=True, kw_only=True)
class _LinearMixtureSizes(_LinearSizes, MixtureSizes):
    pass


def _read_sizes(config: ModelConfig) -> _LinearSizes:
    sizes = decoder.read_sizes(config.filled({"partial_rotary_factor": 0.25}))
    head, value = config.count("linear_key_head_dim", 128), config.count("linear_value_head_dim", 128)
    groups, values = config.count("linear_num_key_heads", 16), config.count("linear_num_value_heads", 32)
    if head != value:
        raise UnsupportedModel(
            f"its linear attention has keys of {head} values and values of {value}, unlike any known"
        )
    if values % groups:
        raise MalformedFile(f"{values} value heads cannot share {groups} key heads")
    remembering = _remembering(config, sizes.layers)
    return _LinearSizes(
        **vars(sizes),
        groups=groups,
        values=values,
        linear_head=head,
        kernel=config.count("linear_conv_kernel_dim", 4),
        remembering=remembering,
        attending=frozenset(range(sizes.layers)) - remembering,
    )


def _remembering(config: ModelConfig, layers: int) -> Layers:
    """The layers with linear attention: by `layer_types`, else all but every fourth."""
    kinds, every = config.get("layer_types"), config.count("full_attention_interval", 4)
    if kinds is None:
        kinds = [_LINEAR if (number + 1) % every else _FULL for number in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in (_LINEAR, _FULL) for kind in kinds):
        raise config.wrong("layer_types", f"a list of what {layers} layers are")
    return frozenset(number for number, kind in enumerate(kinds) if kind == _LINEAR)


def _read_mixture_sizes(config: ModelConfig) -> _LinearMixtureSizes:
    if config.get("mlp_only_layers") or config.count("decoder_sparse_step", 1) != 1:
        raise UnsupportedModel("it has layers without experts between the others, which llama.cpp does not know")
    expert = config.count("moe_intermediate_size")
    return _LinearMixtureSizes(
        **vars(_read_sizes(config.filled({"intermediate_size": expert}))),
        experts=config.count("num_experts"),
        expert=expert,
        shared_expert=config.count("shared_expert_intermediate_size"),
    )


def _describe_next(config: ModelConfig, sizes: _LinearSizes) -> dict[str, Any]:
    return {
        **decoder.describe(config, sizes),
        "ssm.conv_kernel": sizes.kernel,
        "ssm.state_size": sizes.linear_head,
        "ssm.group_count": sizes.groups,
        "ssm.time_step_rank": sizes.values,
        "ssm.inner_size": sizes.inner,
        "attention.recurrent_layers": [
            number in sizes.remembering for number in range(sizes.layers + len(sizes.predicting))
        ],
        # Read by programs that do not know the list.
        "full_attention_interval": config.count("full_attention_interval", 4),
    }


def _describe(config: ModelConfig, sizes: _LinearSizes) -> dict[str, Any]:
    sections = rotary.parameters(config).get("mrope_section") or _SECTIONS
    if not isinstance(sections, list) or len(sections) != 3 or any(type(each) is not int for each in sections):
        raise config.wrong("mrope_section", "three numbers")
    return {**_describe_next(config, sizes), "rope.dimension_sections": [*sections, 0]}


def _describe_experts(config: ModelConfig, sizes: _LinearMixtureSizes) -> dict[str, Any]:
    if config.flag("norm_topk_prob", True) is not True:
        raise UnsupportedModel("it weighs its experts otherwise than llama.cpp does (`norm_topk_prob`)")
    return {
        **decoder.describe_experts(sizes.experts, config.count("num_experts_per_tok")),
        "expert_feed_forward_length": sizes.expert,
        "expert_shared_feed_forward_length": sizes.shared_expert,
    }


def _tiled(head: Callable[[_LinearSizes], int], before: bool = False) -> Callable[[_LinearSizes], Reversible]:
    return lambda sizes: TileRows(sizes.groups, sizes.each, head(sizes), 2 * sizes.selected if before else 0)


def _one(sizes: _LinearSizes) -> int:
    return 1


def _linear_head(sizes: _LinearSizes) -> int:
    return sizes.linear_head


_GATED_ATTENTION = (
    # The rows of a head's query and of its gate, head by head.
    *linear("self_attn.q_proj", "attn_q", Times(2, "queries"), "width"),
    *linear("self_attn.k_proj", "attn_k", "keys", "width"),
    *linear("self_attn.v_proj", "attn_v", "keys", "width"),
    *linear("self_attn.o_proj", "attn_output", "width", "queries"),
    *decoder.HEAD_NORMS,
)
_NORMS = norm("input_layernorm", "attn_norm") + norm("post_attention_layernorm", "post_attention_norm")
_BASE = decoder.added_one((*decoder.ENDS, *_NORMS, *in_layers("attending", *_GATED_ATTENTION)))
_CONVOLUTION = layer(
    "linear_attn.conv1d.weight", "ssm_conv1d.weight", "convolved", 1, "kernel", becomes=("convolved", "kernel")
)
_DELTA_NET = in_layers(
    "remembering",
    layer(
        "linear_attn.in_proj_qkv.weight", "attn_qkv.weight", "convolved", "width", transform=_tiled(_linear_head, True)
    ),
    layer("linear_attn.in_proj_z.weight", "attn_gate.weight", "inner", "width", transform=_tiled(_linear_head)),
    layer("linear_attn.in_proj_a.weight", "ssm_alpha.weight", "values", "width", transform=_tiled(_one)),
    layer("linear_attn.in_proj_b.weight", "ssm_beta.weight", "values", "width", transform=_tiled(_one)),
    _CONVOLUTION.transformed(_tiled(_linear_head, True)),
    layer("linear_attn.A_log", "ssm_a", "values", transform=lambda sizes: TileRates(sizes.groups, sizes.each)),
    layer(
        "linear_attn.dt_bias", "ssm_dt.bias", "values", transform=lambda sizes: TileColumns(sizes.groups, sizes.each)
    ),
    layer("linear_attn.norm.weight", "ssm_norm.weight", "linear_head"),
    layer(
        "linear_attn.out_proj.weight",
        "ssm_out.weight",
        "width",
        "inner",
        transform=lambda sizes: TileColumns(sizes.groups, sizes.each, sizes.linear_head),
    ),
)


def _take(first: bool) -> Callable[[_LinearSizes], Reversible]:
    """Queries, keys and values of every key head (`first`), or its gates: [queries, keys, values, gates] in one."""

    def make(sizes: _LinearSizes) -> Reversible:
        head, wide = sizes.linear_head, sizes.each * sizes.linear_head
        blocks = ((0, head), (head, head), (2 * head, wide)) if first else ((2 * head + wide, wide),)
        return TakeBlocks(sizes.width, 2 * (head + wide), blocks)

    return make


_NEXT_DELTA_NET = in_layers(
    "remembering",
    Known(
        LAYER + "linear_attn.in_proj_qkvz.weight",
        (
            Target("blk.{}.attn_qkv.weight", ("convolved", "width"), _take(True)),
            Target("blk.{}.attn_gate.weight", ("inner", "width"), _take(False)),
        ),
        ("projected", "width"),
    ),
    layer("linear_attn.in_proj_ba.weight", "ssm_ba.weight", Times(2, "values"), "width"),
    _CONVOLUTION,
    layer("linear_attn.A_log", "ssm_a", "values", transform=recurrent.rates),
    layer("linear_attn.dt_bias", "ssm_dt.bias", "values"),
    layer("linear_attn.norm.weight", "ssm_norm.weight", "linear_head"),
    *linear("linear_attn.out_proj", "ssm_out", "width", "inner", bias=False),
)
_EXPERTS = (
    *moe.EITHER_EXPERTS,
    *moe.shared("mlp.shared_expert"),
    layer("mlp.shared_expert_gate.weight", "ffn_gate_inp_shexp.weight", 1, "width", becomes=("width",)),
)


def _predicting(feed_forward: tuple[Known, ...]) -> tuple[Known, ...]:
    """The block that predicts further tokens: a layer with attention, whatever the others have."""
    return decoder.added_one(predicting.named_apart(*_NORMS, *_GATED_ATTENTION, *feed_forward))


QWEN_3_5 = Family(
    classes=("Qwen3_5ForCausalLM",),
    architecture="qwen35",
    tensors=(*_BASE, *decoder.GATED, *_DELTA_NET, *_predicting(decoder.GATED)),
    sizes=_LinearSizes,
    read_sizes=_read_sizes,
    describe=_describe,
)
QWEN_3_5_MOE = Family(
    classes=("Qwen3_5MoeForCausalLM",),
    architecture="qwen35moe",
    tensors=(*_BASE, *_EXPERTS, *_DELTA_NET, *_predicting(_EXPERTS)),
    sizes=_LinearMixtureSizes,
    read_sizes=_read_mixture_sizes,
    describe=lambda config, sizes: {**_describe(config, sizes), **_describe_experts(config, sizes)},
)
QWEN_3_NEXT = Family(
    classes=("Qwen3NextForCausalLM",),
    architecture="qwen3next",
    tensors=(*_BASE, *_EXPERTS, *_NEXT_DELTA_NET, *_predicting(_EXPERTS)),
    sizes=_LinearMixtureSizes,
    read_sizes=_read_mixture_sizes,
    describe=lambda config, sizes: {**_describe_next(config, sizes), **_describe_experts(config, sizes)},
)
FAMILIES = (QWEN_3_5, QWEN_3_5_MOE, QWEN_3_NEXT)
