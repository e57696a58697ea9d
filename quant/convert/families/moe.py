"""Mixtures of experts: Mixtral, Qwen 2 and 3 MoE, Granite MoE; and the parts that mixtures after DeepSeek's share.

Sources: `modeling_*.py` of transformers, `models/*moe.cpp` of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quant.convert.base import Family, Known, Layers, Target, Times, choices, in_layers
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, llama, qwen, rotary
from quant.convert.families.decoder import LAYER, DecoderSizes, layer, linear, router, stacked
from quant.convert.transforms import TakeTransposed, Transpose
from quant.errors import MalformedFile, UnsupportedModel
from quant.plan import Reversible


@dataclass(frozen=True, kw_only=True)
class MixtureSizes(DecoderSizes):
    """The sizes of a mixture: `experts` of the width `expert`, and the width of the part that answers always, or 0."""

    experts: int
    expert: int
    shared_expert: int = 0


@dataclass(frozen=True, kw_only=True)
class RoutedSizes(MixtureSizes):
    """The sizes of a mixture after DeepSeek's pattern: the first layers are `dense`, the others `routed`.

    `shared_expert` is the width of all `shared_experts` together.
    """

    shared_experts: int
    dense: Layers
    routed: Layers


def _read_mixtral_sizes(config: ModelConfig) -> MixtureSizes:
    sizes = decoder.read_sizes(config)
    return MixtureSizes(**vars(sizes), experts=config.count("num_local_experts"), expert=sizes.feed_forward)


def _describe_mixtral(config: ModelConfig, sizes: MixtureSizes) -> dict[str, Any]:
    entries = decoder.bounded_by_window(config, decoder.describe(config, sizes))
    return {**entries, **decoder.describe_experts(sizes.experts, config.count("num_experts_per_tok"))}


MIXTRAL_EXPERTS = (
    router("block_sparse_moe.gate"),
    stacked("block_sparse_moe.experts.[].w1", "ffn_gate", "expert", "width"),
    stacked("block_sparse_moe.experts.[].w2", "ffn_down", "width", "expert"),
    stacked("block_sparse_moe.experts.[].w3", "ffn_up", "expert", "width"),
)
MIXTRAL = Family(
    classes=("MixtralForCausalLM",),
    architecture="llama",
    tensors=(*decoder.paired(decoder.UNGATED), *MIXTRAL_EXPERTS),
    sizes=MixtureSizes,
    read_sizes=_read_mixtral_sizes,
    describe=_describe_mixtral,
    computed=rotary.tables,
)


def expert_matrices(source: str) -> tuple[Known, ...]:
    """The matrices of a layer's experts, one by one."""
    return (
        stacked(f"{source}.[].gate_proj", "ffn_gate", "expert", "width"),
        stacked(f"{source}.[].down_proj", "ffn_down", "width", "expert"),
        stacked(f"{source}.[].up_proj", "ffn_up", "expert", "width"),
    )


def either_experts(gate: str, source: str) -> tuple[Known, ...]:
    """The router and the experts of a layer, one by one or all in one tensor."""
    return (
        router(gate),
        *choices(
            single=expert_matrices(source),
            together=(
                Known(
                    f"{LAYER}{source}.gate_up_proj",
                    (Target("blk.{}.ffn_gate_exps.weight"), Target("blk.{}.ffn_up_exps.weight")),
                    ("experts", Times(2, "expert"), "width"),
                ),
                layer(f"{source}.down_proj", "ffn_down_exps.weight", "experts", "width", "expert"),
            ),
        ),
    )


EXPERT_MATRICES = expert_matrices("mlp.experts")
EXPERTS = (router("mlp.gate"), *EXPERT_MATRICES)
EITHER_EXPERTS = either_experts("mlp.gate", "mlp.experts")


def _take_gate(sizes: MixtureSizes) -> Reversible:
    return TakeTransposed(sizes.width, sizes.expert, 0)


def _take_up(sizes: MixtureSizes) -> Reversible:
    return TakeTransposed(sizes.width, sizes.expert, sizes.expert)


def _transpose_down(sizes: MixtureSizes) -> Reversible:
    return Transpose(sizes.width, sizes.expert)


def turned_experts(source: str) -> tuple[Known, ...]:
    """The experts of a layer in two tensors, which are stored turned, as Llama 4 and Qwen 3 VL have them."""
    return (
        Known(
            f"{LAYER}{source}.gate_up_proj",
            (
                Target("blk.{}.ffn_gate_exps.weight", ("experts", "expert", "width"), _take_gate),
                Target("blk.{}.ffn_up_exps.weight", ("experts", "expert", "width"), _take_up),
            ),
            ("experts", "width", Times(2, "expert")),
        ),
        turned_down(source),
    )


def turned_down(source: str) -> Known:
    """The last matrices of all experts of a layer in one tensor, which are stored turned."""
    return layer(
        f"{source}.down_proj",
        "ffn_down_exps.weight",
        "experts",
        "expert",
        "width",
        becomes=("experts", "width", "expert"),
        transform=_transpose_down,
    )


def shared(source: str) -> tuple[Known, ...]:
    """The expert that always answers."""
    return (
        *linear(f"{source}.gate_proj", "ffn_gate_shexp", "shared_expert", "width", bias=False),
        *linear(f"{source}.down_proj", "ffn_down_shexp", "width", "shared_expert", bias=False),
        *linear(f"{source}.up_proj", "ffn_up_shexp", "shared_expert", "width", bias=False),
    )


# Added to the probabilities when experts are chosen, and only then.
PREFERENCE = in_layers("routed", layer("mlp.gate.e_score_correction_bias", "exp_probs_b.bias", "experts"))
_GATING = {"softmax": 1, "sigmoid": 2}


def read_routed_sizes(config: ModelConfig, sizes: DecoderSizes) -> RoutedSizes:
    """The sizes of a mixture after DeepSeek's pattern; `sizes` are its decoder's."""
    expert, shared = config.count("moe_intermediate_size"), config.count("n_shared_experts")
    types = config.get("mlp_layer_types")
    layers = sizes.layers
    if types is None:
        dense = config.count("first_k_dense_replace") if config.get("first_k_dense_replace") != 0 else 0
    else:
        config.without_effect("first_k_dense_replace")
        dense = types.count("dense") if isinstance(types, list) else 0
        if types != ["dense"] * dense + ["sparse"] * (layers - dense):
            raise UnsupportedModel("it has layers without experts between the others, which llama.cpp does not know")
    if dense > layers:
        raise config.wrong("first_k_dense_replace", f"no more than its {layers} layers")
    return RoutedSizes(
        **vars(sizes),
        experts=config.count("n_routed_experts"),
        expert=expert,
        shared_expert=expert * shared,
        shared_experts=shared,
        dense=frozenset(range(dense)),
        routed=frozenset(range(dense, layers)),
    )


def describe_routed(config: ModelConfig, sizes: RoutedSizes, gating: str) -> dict[str, Any]:
    """The entries of such a mixture; `gating` makes probabilities: `softmax` or `sigmoid`."""
    groups, used = config.count("n_group", 1), config.count("topk_group", 1)
    # Where all groups are used they change nothing, and llama.cpp ends the process.
    grouped = {"expert_group_count": groups, "expert_group_used_count": used} if used < groups else {}
    if sizes.experts % groups or used > groups:
        raise MalformedFile(f"{sizes.experts} experts cannot be chosen from {used} of {groups} groups")
    return {
        "leading_dense_block_count": len(sizes.dense),
        **decoder.describe_experts(sizes.experts, config.count("num_experts_per_tok")),
        "expert_feed_forward_length": sizes.expert,
        "expert_shared_count": sizes.shared_experts,
        "expert_weights_scale": decoder.scale(config, "routed_scaling_factor", 1.0),
        "expert_weights_norm": config.flag("norm_topk_prob"),
        "expert_gating_func": _GATING[gating],
        **grouped,
    }


def _read_qwen_sizes(config: ModelConfig) -> MixtureSizes:
    if config.get("mlp_only_layers") or config.count("decoder_sparse_step", 1) != 1:
        raise UnsupportedModel("it has layers without experts between the others, which llama.cpp does not know")
    expert = config.count("moe_intermediate_size")
    return MixtureSizes(
        **vars(decoder.read_sizes(config.filled({"intermediate_size": expert}))),
        experts=config.count("num_local_experts" if config.get("num_experts") is None else "num_experts"),
        expert=expert,
        shared_expert=config.count("shared_expert_intermediate_size", 1),
    )


def _describe_qwen(config: ModelConfig, sizes: MixtureSizes) -> dict[str, Any]:
    return {
        **qwen.describe(config, sizes),
        **decoder.describe_experts(sizes.experts, config.count("num_experts_per_tok")),
        "expert_feed_forward_length": sizes.expert,
    }


def _describe_qwen2(config: ModelConfig, sizes: MixtureSizes) -> dict[str, Any]:
    _check_weights(config, summed_to_one=False)
    return {**_describe_qwen(config, sizes), "expert_shared_feed_forward_length": sizes.shared_expert}


def _describe_qwen3(config: ModelConfig, sizes: MixtureSizes) -> dict[str, Any]:
    _check_weights(config, summed_to_one=True)
    return _describe_qwen(config, sizes)


def _check_weights(config: ModelConfig, summed_to_one: bool) -> None:
    if config.flag("norm_topk_prob") is not summed_to_one:
        raise UnsupportedModel("it weighs its experts otherwise than llama.cpp does (`norm_topk_prob`)")


QWEN2_MOE = Family(
    classes=("Qwen2MoeForCausalLM",),
    architecture="qwen2moe",
    tensors=(
        *decoder.UNGATED,
        *EXPERTS,
        *shared("mlp.shared_expert"),
        layer("mlp.shared_expert_gate.weight", "ffn_gate_inp_shexp.weight", 1, "width", becomes=("width",)),
    ),
    sizes=MixtureSizes,
    read_sizes=_read_qwen_sizes,
    describe=_describe_qwen2,
)
QWEN3_MOE = Family(
    classes=("Qwen3MoeForCausalLM",),
    architecture="qwen3moe",
    tensors=(
        *decoder.UNGATED,
        *decoder.HEAD_NORMS,
        router("mlp.gate"),
        *choices(single=EXPERT_MATRICES, turned=turned_experts("mlp.experts")),
    ),
    sizes=MixtureSizes,
    read_sizes=_read_qwen_sizes,
    describe=_describe_qwen3,
)


def _read_granite_sizes(config: ModelConfig) -> MixtureSizes:
    sizes = decoder.read_sizes(config)
    return MixtureSizes(
        **vars(sizes),
        experts=config.count("num_local_experts"),
        expert=sizes.feed_forward,
        shared_expert=config.count("shared_intermediate_size") if config.get("shared_intermediate_size") else 0,
    )


def _describe_granite(config: ModelConfig, sizes: MixtureSizes) -> dict[str, Any]:
    shared = {"expert_shared_feed_forward_length": sizes.shared_expert} if sizes.shared_expert else {}
    return {
        **llama.describe_granite(config, sizes),
        **decoder.describe_experts(sizes.experts, config.count("num_experts_per_tok")),
        **shared,
    }


GRANITE_EXPERTS = (
    router("block_sparse_moe.router.layer"),
    Known(
        LAYER + "block_sparse_moe.input_linear.weight",
        (Target("blk.{}.ffn_gate_exps.weight"), Target("blk.{}.ffn_up_exps.weight")),
        ("experts", Times(2, "expert"), "width"),
    ),
    layer("block_sparse_moe.output_linear.weight", "ffn_down_exps.weight", "experts", "width", "expert"),
    Known(
        LAYER + "shared_mlp.input_linear.weight",
        (Target("blk.{}.ffn_gate_shexp.weight"), Target("blk.{}.ffn_up_shexp.weight")),
        (Times(2, "shared_expert"), "width"),
        required=False,
    ),
    layer("shared_mlp.output_linear.weight", "ffn_down_shexp.weight", "width", "shared_expert", required=False),
)
GRANITE_MOE = Family(
    classes=("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"),
    architecture="granitemoe",
    tensors=(*decoder.paired(decoder.UNGATED), *GRANITE_EXPERTS),
    sizes=MixtureSizes,
    read_sizes=_read_granite_sizes,
    describe=_describe_granite,
    computed=rotary.tables,
)


FAMILIES = (MIXTRAL, QWEN2_MOE, QWEN3_MOE, GRANITE_MOE)
