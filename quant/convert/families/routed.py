"""Mixtures of many small experts: GLM 4.5 and 4.6, dots.llm1, ERNIE 4.5 MoE, Hunyuan MoE, MiniMax M2, OLMoE, LFM 2 MoE.

Most choose by probabilities to which a learned preference is added, as DeepSeek V3 does (`moe.py`); they differ in
their norms, in what is rotated, and in the names. Sources: `modeling_*.py` of transformers, `models/*.cpp` of
llama.cpp.
"""

from __future__ import annotations

from typing import Any

from quant.convert.base import Family, Known, Sizes
from quant.convert.config import Config
from quant.convert.families import decoder, moe, recurrent, relatives
from quant.convert.families.decoder import LAYER, layer, norm, router, stacked
from quant.errors import MalformedFile, UnsupportedModel

_ENDS = (decoder.EMBEDDING, *decoder.final_norm(), decoder.OUTPUT)
_ALL_NORMS = norm("self_attn.q_norm", "attn_q_norm", "queries") + norm("self_attn.k_norm", "attn_k_norm", "keys")


def _read_sizes(config: Config) -> dict[str, int]:
    return {**decoder.read_sizes(config), **moe.read_routed_sizes(config)}


def _describe_glm(config: Config, sizes: Sizes) -> dict[str, Any]:
    return {**decoder.describe(config, sizes), **moe.describe_routed(config, sizes, "sigmoid")}


def _describe_dots(config: Config, sizes: Sizes) -> dict[str, Any]:
    if sizes["shared"] != sizes["heads"]:
        raise UnsupportedModel("its heads share keys, and those of llama.cpp's `dots1` do not")
    types = config.get("layer_types")
    if types and set(types) != {"full_attention"}:
        raise UnsupportedModel("it has layers with a sliding window, and llama.cpp's `dots1` has none")
    return _describe_glm(config, sizes)


_MIXTURE = (
    *decoder.only(decoder.GATED, "", "dense"),
    *decoder.only((*moe.EXPERTS, *moe.shared("mlp.shared_experts")), "dense", "layers"),
)
GLM4_MOE = Family(
    classes=("Glm4MoeForCausalLM",),
    architecture="glm4moe",
    tensors=(
        *(*_ENDS, *decoder.ATTENTION, *_MIXTURE, moe.PREFERENCE),
        *norm("input_layernorm", "attn_norm"),
        *norm("post_attention_layernorm", "post_attention_norm"),
        *(known._replace(required=False) for known in decoder.HEAD_NORMS),
    ),
    read_sizes=_read_sizes,
    describe=_describe_glm,
)
DOTS1 = Family(
    classes=("Dots1ForCausalLM",),
    architecture="dots1",
    tensors=(*_ENDS, *decoder.NORMS, *decoder.ATTENTION, *decoder.HEAD_NORMS, *_MIXTURE, moe.PREFERENCE),
    read_sizes=_read_sizes,
    describe=_describe_dots,
)


def _read_ernie_sizes(config: Config) -> dict[str, int]:
    sizes = decoder.read_sizes(config)
    last = config.get("moe_layer_end_index")
    whole = last is None or last in (-1, sizes["layers"] - 1, sizes["layers"])
    if not whole or config.count("moe_layer_interval", 1) != 1:
        raise UnsupportedModel("it has layers without experts between the others, which llama.cpp does not know")
    first, expert = config.get("moe_layer_start_index"), config.count("moe_intermediate_size")
    shared = config.get("moe_num_shared_experts")
    return {
        **sizes,
        **{"dense": config.count("moe_layer_start_index") if first else 0, "one": 1},
        **{"experts": config.count("moe_num_experts"), "expert": expert},
        "shared_expert": expert * (config.count("moe_num_shared_experts") if shared else 0),
        "sharing": sizes["layers"] if shared else 0,
    }


def _describe_ernie(config: Config, sizes: Sizes) -> dict[str, Any]:
    shared = {"expert_shared_feed_forward_length": sizes["shared_expert"]} if sizes["sharing"] else {}
    return {
        **decoder.describe(config, sizes),
        **decoder.describe_experts(sizes["experts"], config.count("moe_k")),
        "expert_feed_forward_length": sizes["expert"],
        "leading_dense_block_count": sizes["dense"],
        "interleave_moe_layer_step": 1,
        **shared,
    }


ERNIE_MOE = Family(
    classes=("Ernie4_5_MoeForCausalLM",),
    architecture="ernie4_5-moe",
    tensors=(
        *(*_ENDS, *decoder.NORMS, *decoder.ATTENTION),
        *decoder.only(decoder.GATED, "", "dense"),
        *decoder.only(moe.EXPERTS, "dense", "layers"),
        *decoder.only(moe.shared("mlp.shared_experts"), "dense", "sharing"),
        Known(
            LAYER + "mlp.moe_statics.e_score_correction_bias",
            "blk.{}.exp_probs_b.bias",
            ("one", "experts"),
            result=("experts",),
            layers=("dense", "layers"),
            required=False,
        ),
    ),
    read_sizes=_read_ernie_sizes,
    describe=_describe_ernie,
)


def _read_hunyuan_sizes(config: Config) -> dict[str, int]:
    sizes = decoder.read_sizes(config)
    shared = _same(config, "num_shared_expert", 1) * sizes["feed_forward"]
    if _same(config, "moe_intermediate_size", sizes["feed_forward"]) != sizes["feed_forward"]:
        raise UnsupportedModel("its experts have another width than llama.cpp takes them to have")
    return {
        **sizes,
        **{"experts": _same(config, "num_experts"), "expert": sizes["feed_forward"], "shared_expert": shared},
    }


def _same(config: Config, key: str, default: int | None = None) -> int:
    """A number that may be given for every layer, and is the same for all."""
    value = config.get(key)
    if isinstance(value, list) and value and all(each == value[0] for each in value):
        value = value[0]
    return Config(config.name, {key: value}).count(key, default)


def _describe_hunyuan(config: Config, sizes: Sizes) -> dict[str, Any]:
    return {
        **relatives.describe_hunyuan(config, sizes),
        **decoder.describe_experts(sizes["experts"], _same(config, "moe_topk")),
        "expert_feed_forward_length": sizes["expert"],
        "expert_shared_feed_forward_length": sizes["shared_expert"],
    }


HUNYUAN_MOE = Family(
    classes=("HunYuanMoEV1ForCausalLM",),
    architecture="hunyuan-moe",
    tensors=(
        *(*_ENDS, *decoder.NORMS, *decoder.ATTENTION, *relatives.HUNYUAN_NORMS),
        router("mlp.gate.wg"),
        *moe.EXPERTS[1:],
        *moe.shared("mlp.shared_mlp"),
    ),
    read_sizes=_read_hunyuan_sizes,
    describe=_describe_hunyuan,
)


def _read_minimax_sizes(config: Config) -> dict[str, int]:
    head, rotated = config.count("head_dim"), config.get("rotary_dim")
    share = config.count("rotary_dim") / head if rotated else config.get("partial_rotary_factor")
    sizes = decoder.read_sizes(config.changed({"partial_rotary_factor": share}))
    return {**sizes, "experts": config.count("num_local_experts")}


def _describe_minimax(config: Config, sizes: Sizes) -> dict[str, Any]:
    if config.values.get("scoring_func", "sigmoid") != "sigmoid":
        raise UnsupportedModel("it chooses its experts otherwise than llama.cpp does (`scoring_func`)")
    return {
        **decoder.describe(config, sizes),
        **decoder.describe_experts(sizes["experts"], config.count("num_experts_per_tok")),
        "expert_feed_forward_length": sizes["feed_forward"],
        "expert_gating_func": 2,
    }


MINIMAX_M2 = Family(
    classes=("MiniMaxM2ForCausalLM",),
    architecture="minimax-m2",
    tensors=(
        *(*_ENDS, *decoder.NORMS, *decoder.ATTENTION, *_ALL_NORMS),
        router("block_sparse_moe.gate"),
        stacked("block_sparse_moe.experts.[].w1", "ffn_gate", "feed_forward", "width"),
        stacked("block_sparse_moe.experts.[].w2", "ffn_down", "width", "feed_forward"),
        stacked("block_sparse_moe.experts.[].w3", "ffn_up", "feed_forward", "width"),
        layer("block_sparse_moe.e_score_correction_bias", "exp_probs_b.bias", "experts"),
    ),
    read_sizes=_read_minimax_sizes,
    describe=_describe_minimax,
)


def _read_olmoe_sizes(config: Config) -> dict[str, int]:
    sizes = decoder.read_sizes(config)
    return {**sizes, "experts": config.count("num_experts"), "expert": sizes["feed_forward"]}


def _describe_olmoe(config: Config, sizes: Sizes) -> dict[str, Any]:
    if config.get("clip_qkv") is not None or config.flag("norm_topk_prob"):
        raise UnsupportedModel("it clips queries or weighs its experts otherwise than llama.cpp does")
    if sizes["queries"] != sizes["width"]:
        raise MalformedFile(f"its heads make up {sizes['queries']} values and the model is {sizes['width']} wide")
    return {
        **decoder.describe(config, sizes),
        **decoder.describe_experts(sizes["experts"], config.count("num_experts_per_tok")),
    }


OLMOE = Family(
    classes=("OlmoeForCausalLM",),
    architecture="olmoe",
    tensors=(*_ENDS, *decoder.NORMS, *decoder.ATTENTION, *_ALL_NORMS, *moe.EXPERTS),
    read_sizes=_read_olmoe_sizes,
    describe=_describe_olmoe,
)


def _read_lfm2_sizes(config: Config) -> dict[str, int]:
    dense = config.count("num_dense_layers", 2) if config.get("num_dense_layers") != 0 else 0
    plain = config.changed({"block_auto_adjust_ff_dim": False})
    return {
        **recurrent.LFM2.read_sizes(plain),
        **{"dense": dense, "experts": config.count("num_experts"), "expert": config.count("moe_intermediate_size")},
    }


def _describe_lfm2(config: Config, sizes: Sizes) -> dict[str, Any]:
    expected = {"use_expert_bias": True, "norm_topk_prob": True, "routed_scaling_factor": 1.0}
    odd = [key for key, value in expected.items() if config.values.get(key, value) != value]
    if odd:
        raise UnsupportedModel(f"it chooses its experts otherwise than llama.cpp does (`{odd[0]}`)")
    return {
        **recurrent.LFM2.describe(config, sizes),
        **decoder.describe_experts(sizes["experts"], config.count("num_experts_per_tok")),
        "expert_feed_forward_length": sizes["expert"],
        "leading_dense_block_count": sizes["dense"],
        "expert_gating_func": 2,
    }


_LFM2_DENSE = tuple(known for known in recurrent.LFM2.tensors if ".feed_forward." in known.source)
LFM2_MOE = Family(
    classes=("Lfm2MoeForCausalLM",),
    architecture="lfm2moe",
    tensors=(
        *(known for known in recurrent.LFM2.tensors if known not in _LFM2_DENSE),
        *decoder.only(_LFM2_DENSE, "", "dense"),
        *decoder.only(
            (
                router("feed_forward.gate"),
                layer("feed_forward.expert_bias", "exp_probs_b.bias", "experts"),
                stacked("feed_forward.experts.[].w1", "ffn_gate", "expert", "width"),
                stacked("feed_forward.experts.[].w2", "ffn_down", "width", "expert"),
                stacked("feed_forward.experts.[].w3", "ffn_up", "expert", "width"),
            ),
            "dense",
            "layers",
        ),
    ),
    read_sizes=_read_lfm2_sizes,
    describe=_describe_lfm2,
    tied=True,
)
FAMILIES = (GLM4_MOE, DOTS1, ERNIE_MOE, HUNYUAN_MOE, MINIMAX_M2, OLMOE, LFM2_MOE)
