"""Mixtures of experts: Mixtral, Qwen 2 and 3 MoE, Granite MoE, DeepSeek V2 Lite.

Sources: `modeling_*.py` of transformers, `models/*moe.cpp` and `deepseek2.cpp` of llama.cpp. DeepSeek's keys and values
are kept as they are multiplied out, which takes more cache than llama.cpp's other form and is the same otherwise.
"""

from __future__ import annotations

from typing import Any

from quant.convert import decoder, llama, rotary
from quant.convert.base import Family, Known, Sizes
from quant.convert.config import Config
from quant.convert.decoder import LAYER, linear, norm, router, stacked
from quant.errors import UnsupportedModel

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
_EXPERTS = (
    router("mlp.gate"),
    stacked("mlp.experts.[].gate_proj", "ffn_gate", "expert", "width"),
    stacked("mlp.experts.[].down_proj", "ffn_down", "width", "expert"),
    stacked("mlp.experts.[].up_proj", "ffn_up", "expert", "width"),
)


def _shared(source: str) -> tuple[Known, ...]:
    """The expert that always answers."""
    return (
        *linear(f"{source}.gate_proj", "ffn_gate_shexp", "shared_expert", "width", bias=False),
        *linear(f"{source}.down_proj", "ffn_down_shexp", "width", "shared_expert", bias=False),
        *linear(f"{source}.up_proj", "ffn_up_shexp", "shared_expert", "width", bias=False),
    )


def _read_qwen_sizes(config: Config) -> dict[str, int]:
    if config.get("mlp_only_layers") or config.count("decoder_sparse_step", 1) != 1:
        raise UnsupportedModel("it has layers without experts between the others, which llama.cpp does not know")
    expert = config.count("moe_intermediate_size")
    return {
        **decoder.read_sizes(Config(config.name, {"intermediate_size": expert, **config.values})),
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
        *(*_DENSE, *_EXPERTS, *_shared("mlp.shared_expert")),
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
    tensors=(*_DENSE, *decoder.HEAD_NORMS, *_EXPERTS),
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


def _read_deepseek_sizes(config: Config) -> dict[str, int]:
    if config.get("q_lora_rank") is not None:
        raise UnsupportedModel("of DeepSeek's models only the Lite ones of version 2 can be converted yet")
    if config.count("num_hidden_layers") not in (26, 27):
        raise UnsupportedModel("llama.cpp knows DeepSeek V2 Lite by its 27 layers, and this model has other")
    heads = config.count("num_attention_heads")
    plain, turned = config.count("qk_nope_head_dim"), config.count("qk_rope_head_dim")
    value, rank = config.count("v_head_dim"), config.count("kv_lora_rank")
    expert = config.count("moe_intermediate_size")
    return {
        "vocabulary": config.count("vocab_size"),
        "width": config.count("hidden_size"),
        "layers": config.count("num_hidden_layers"),
        "dense": config.count("first_k_dense_replace"),
        "feed_forward": config.count("intermediate_size"),
        **{"heads": heads, "shared": heads, "head": plain + turned, "rotated": turned, "value": value, "rank": rank},
        **{"queries": heads * (plain + turned), "values": heads * value},
        **{"compressed": rank + turned, "expanded": heads * (plain + value)},
        **{"experts": config.count("n_routed_experts"), "expert": expert},
        "shared_experts": config.count("n_shared_experts"),
        "shared_expert": expert * config.count("n_shared_experts"),
    }


def _describe_deepseek(config: Config, sizes: Sizes) -> dict[str, Any]:
    odd = {"topk_method": "greedy", "scoring_func": "softmax", "moe_layer_freq": 1, "norm_topk_prob": False}
    other = [key for key, value in odd.items() if config.values.get(key, value) != value]
    if other:
        raise UnsupportedModel(f"it chooses its experts otherwise than DeepSeek V2 Lite (`{other[0]}`)")
    return {
        **_describe_rotation(config, sizes),
        "attention.value_length": sizes["value"],
        "attention.kv_lora_rank": sizes["rank"],
        "leading_dense_block_count": sizes["dense"],
        **decoder.describe_experts(sizes["experts"], config.count("num_experts_per_tok")),
        "expert_feed_forward_length": sizes["expert"],
        "expert_shared_count": sizes["shared_experts"],
        "expert_weights_scale": config.number("routed_scaling_factor", 1.0),
        "expert_weights_norm": False,
        "expert_gating_func": 1,
    }


def _describe_rotation(config: Config, sizes: Sizes) -> dict[str, Any]:
    """YaRN as DeepSeek has it: attention is sharper by a logarithm of the factor, and rotation leaves lengths alone."""
    key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    scaling = rotary.parameters(config)
    all_dimensions = scaling.get("mscale_all_dim")
    if not all_dimensions:
        return decoder.describe(config, sizes)
    if scaling.get("mscale") != all_dimensions:
        raise UnsupportedModel("its rotary scaling has an `mscale` that is not its `mscale_all_dim`")
    bare = {name: value for name, value in scaling.values.items() if not name.startswith("mscale")}
    entries = decoder.describe(Config(config.name, {**config.values, key: bare}), sizes)
    # llama.cpp expects the 0.1 of the formula in here.
    return {**entries, "rope.scaling.yarn_log_multiplier": 0.1 * scaling.number("mscale_all_dim")}


def _only(tensors: tuple[Known, ...], first: str, end: str) -> tuple[Known, ...]:
    return tuple(known._replace(layers=(first, end)) for known in tensors)


DEEPSEEK2 = Family(
    classes=("DeepseekV2ForCausalLM",),
    architecture="deepseek2",
    tensors=(
        *(decoder.EMBEDDING, *decoder.final_norm(), decoder.OUTPUT, *decoder.NORMS),
        *linear("self_attn.q_proj", "attn_q", "queries", "width", bias=False),
        *linear("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa", "compressed", "width", bias=False),
        *norm("self_attn.kv_a_layernorm", "attn_kv_a_norm", "rank"),
        *linear("self_attn.kv_b_proj", "attn_kv_b", "expanded", "rank", bias=False),
        *linear("self_attn.o_proj", "attn_output", "width", "values", bias=False),
        *_only(decoder.GATED, "", "dense"),
        *_only((*_EXPERTS, *_shared("mlp.shared_experts")), "dense", "layers"),
    ),
    read_sizes=_read_deepseek_sizes,
    describe=_describe_deepseek,
)
FAMILIES = (MIXTRAL, QWEN2_MOE, QWEN3_MOE, GRANITE_MOE, DEEPSEEK2)
