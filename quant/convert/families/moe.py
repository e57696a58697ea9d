"""Mixtures of experts: Mixtral, Qwen 2 and 3 MoE, Granite MoE; and what those after DeepSeek's pattern have in common.

Sources: `modeling_*.py` of transformers, `models/*moe.cpp` of llama.cpp.
"""

from __future__ import annotations

from typing import Any

from quant.convert.base import Family, Known, Sizes
from quant.convert.config import Config
from quant.convert.families import decoder, llama, rotary
from quant.convert.families.decoder import LAYER, layer, linear, router, stacked
from quant.errors import MalformedFile, UnsupportedModel

_DENSE = (decoder.EMBEDDING, *decoder.final_norm(), decoder.OUTPUT, *decoder.NORMS, *decoder.ATTENTION)


def _read_mixtral_sizes(config: Config) -> dict[str, int]:
    return {**decoder.read_sizes(config), "experts": config.count("num_local_experts")}


def _describe_mixtral(config: Config, sizes: Sizes) -> dict[str, Any]:
    entries = decoder.bounded_by_window(config, decoder.describe(config, sizes))
    return {**entries, **decoder.describe_experts(sizes["experts"], config.count("num_experts_per_tok"))}


MIXTRAL = Family(
    classes=("MixtralForCausalLM",),
    architecture="llama",
    tensors=(
        *decoder.paired(_DENSE),
        router("block_sparse_moe.gate"),
        stacked("block_sparse_moe.experts.[].w1", "ffn_gate", "feed_forward", "width"),
        stacked("block_sparse_moe.experts.[].w2", "ffn_down", "width", "feed_forward"),
        stacked("block_sparse_moe.experts.[].w3", "ffn_up", "feed_forward", "width"),
    ),
    read_sizes=_read_mixtral_sizes,
    describe=_describe_mixtral,
    transforms=llama.transforms,
    computed=rotary.tables,
)
EXPERTS = (
    router("mlp.gate"),
    stacked("mlp.experts.[].gate_proj", "ffn_gate", "expert", "width"),
    stacked("mlp.experts.[].down_proj", "ffn_down", "width", "expert"),
    stacked("mlp.experts.[].up_proj", "ffn_up", "expert", "width"),
)


def shared(source: str) -> tuple[Known, ...]:
    """The expert that always answers."""
    return (
        *linear(f"{source}.gate_proj", "ffn_gate_shexp", "shared_expert", "width", bias=False),
        *linear(f"{source}.down_proj", "ffn_down_shexp", "width", "shared_expert", bias=False),
        *linear(f"{source}.up_proj", "ffn_up_shexp", "shared_expert", "width", bias=False),
    )


# What is added to the probabilities when experts are chosen, and only then.
PREFERENCE = layer("mlp.gate.e_score_correction_bias", "exp_probs_b.bias", "experts")._replace(
    layers=("dense", "layers")
)
_GATING = {"softmax": 1, "sigmoid": 2}


def read_routed_sizes(config: Config) -> dict[str, int]:
    """The sizes of mixtures after DeepSeek's pattern, of which the first layers have no experts."""
    expert, shared = config.count("moe_intermediate_size"), config.count("n_shared_experts")
    types = config.get("mlp_layer_types")
    layers = config.count("num_hidden_layers")
    if types is None:
        dense = config.count("first_k_dense_replace") if config.get("first_k_dense_replace") != 0 else 0
    else:
        dense = types.count("dense") if isinstance(types, list) else 0
        if types != ["dense"] * dense + ["sparse"] * (layers - dense):
            raise UnsupportedModel("it has layers without experts between the others, which llama.cpp does not know")
    return {
        **{"dense": dense, "experts": config.count("n_routed_experts"), "expert": expert},
        **{"shared_experts": shared, "shared_expert": expert * shared},
    }


def describe_routed(config: Config, sizes: Sizes, gating: str) -> dict[str, Any]:
    """The entries of such a mixture; `gating` makes probabilities: `softmax` or `sigmoid`."""
    groups, used = config.count("n_group", 1), config.count("topk_group", 1)
    grouped = {"expert_group_count": groups, "expert_group_used_count": used} if groups > 1 else {}
    if sizes["experts"] % groups or used > groups:
        raise MalformedFile(f"{sizes['experts']} experts cannot be chosen from {used} of {groups} groups")
    return {
        "leading_dense_block_count": sizes["dense"],
        **decoder.describe_experts(sizes["experts"], config.count("num_experts_per_tok")),
        "expert_feed_forward_length": sizes["expert"],
        "expert_shared_count": sizes["shared_experts"],
        "expert_weights_scale": config.number("routed_scaling_factor", 1.0),
        "expert_weights_norm": config.flag("norm_topk_prob"),
        "expert_gating_func": _GATING[gating],
        **grouped,
    }


def _read_qwen_sizes(config: Config) -> dict[str, int]:
    if config.get("mlp_only_layers") or config.count("decoder_sparse_step", 1) != 1:
        raise UnsupportedModel("it has layers without experts between the others, which llama.cpp does not know")
    expert = config.count("moe_intermediate_size")
    return {
        **decoder.read_sizes(config.filled({"intermediate_size": expert})),
        "experts": config.count("num_local_experts" if config.get("num_experts") is None else "num_experts"),
        "expert": expert,
        "shared_expert": config.count("shared_expert_intermediate_size", 1),
    }


def _describe_qwen(config: Config, sizes: Sizes) -> dict[str, Any]:
    return {
        **decoder.describe(config, sizes),
        **decoder.describe_experts(sizes["experts"], config.count("num_experts_per_tok")),
        "expert_feed_forward_length": sizes["expert"],
    }


def _describe_qwen2(config: Config, sizes: Sizes) -> dict[str, Any]:
    _check_weights(config, summed_to_one=False)
    return {**_describe_qwen(config, sizes), "expert_shared_feed_forward_length": sizes["shared_expert"]}


def _describe_qwen3(config: Config, sizes: Sizes) -> dict[str, Any]:
    _check_weights(config, summed_to_one=True)
    return _describe_qwen(config, sizes)


def _check_weights(config: Config, summed_to_one: bool) -> None:
    if config.flag("norm_topk_prob") is not summed_to_one:
        raise UnsupportedModel("it weighs its experts otherwise than llama.cpp does (`norm_topk_prob`)")


QWEN2_MOE = Family(
    classes=("Qwen2MoeForCausalLM",),
    architecture="qwen2moe",
    tensors=(
        *(*_DENSE, *EXPERTS, *shared("mlp.shared_expert")),
        Known(
            LAYER + "mlp.shared_expert_gate.weight",
            "blk.{}.ffn_gate_inp_shexp.weight",
            ("one", "width"),
            result=("width",),
        ),
    ),
    read_sizes=lambda config: {**_read_qwen_sizes(config), "one": 1},
    describe=_describe_qwen2,
)
QWEN3_MOE = Family(
    classes=("Qwen3MoeForCausalLM",),
    architecture="qwen3moe",
    tensors=(*_DENSE, *decoder.HEAD_NORMS, *EXPERTS),
    read_sizes=_read_qwen_sizes,
    describe=_describe_qwen3,
)


def _read_granite_sizes(config: Config) -> dict[str, int]:
    sizes = decoder.read_sizes(config)
    shared = config.get("shared_intermediate_size") or 0
    return {
        **sizes,
        "experts": config.count("num_local_experts"),
        "shared_expert": config.count("shared_intermediate_size") if shared else 0,
        "two_shared": 2 * shared if shared else 0,
    }


def _describe_granite(config: Config, sizes: Sizes) -> dict[str, Any]:
    shared = {"expert_shared_feed_forward_length": sizes["shared_expert"]} if sizes["shared_expert"] else {}
    return {
        **llama.describe_granite(config, sizes),
        **decoder.describe_experts(sizes["experts"], config.count("num_experts_per_tok")),
        **shared,
    }


_GRANITE_TENSORS = (
    *decoder.paired(_DENSE),
    router("block_sparse_moe.router.layer"),
    Known(
        LAYER + "block_sparse_moe.input_linear.weight",
        "blk.{}.ffn_gate_exps.weight blk.{}.ffn_up_exps.weight",
        ("experts", "two_feed_forward", "width"),
    ),
    Known(
        LAYER + "block_sparse_moe.output_linear.weight",
        "blk.{}.ffn_down_exps.weight",
        ("experts", "width", "feed_forward"),
    ),
    Known(
        LAYER + "shared_mlp.input_linear.weight",
        "blk.{}.ffn_gate_shexp.weight blk.{}.ffn_up_shexp.weight",
        ("two_shared", "width"),
        required=False,
    ),
    Known(
        LAYER + "shared_mlp.output_linear.weight",
        "blk.{}.ffn_down_shexp.weight",
        ("width", "shared_expert"),
        required=False,
    ),
)
GRANITE_MOE = Family(
    classes=("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"),
    architecture="granitemoe",
    tensors=_GRANITE_TENSORS,
    read_sizes=_read_granite_sizes,
    describe=_describe_granite,
    transforms=llama.transforms,
    computed=rotary.tables,
)


FAMILIES = (MIXTRAL, QWEN2_MOE, QWEN3_MOE, GRANITE_MOE)
