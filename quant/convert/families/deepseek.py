"""DeepSeek V2 and V3 (R1, Kimi K2, Moonlight), GLM 4.7 Flash, Youtu: keys and values from a few numbers for each token.

llama.cpp keeps only these numbers in its cache (multi-head latent attention). So it wants two matrices in place of one:
the rows that make keys of the numbers, transposed, and the rows that make values. Sources: `modeling_deepseek_v2.py`,
`modeling_deepseek_v3.py` and `modeling_glm4_moe_lite.py` of transformers, `deepseek2.cpp` of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quant.convert.base import Family, Known, Layers, Target, count_layers, in_layers
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, moe, predicting, rotary
from quant.convert.families.decoder import LAYER, DecoderSizes, linear, norm
from quant.convert.families.moe import RoutedSizes
from quant.convert.transforms import TakeRows
from quant.errors import UnsupportedModel
from quant.plan import Reversible

# By these numbers of layers llama.cpp knows the models whose queries come straight from the width.
_STRAIGHT = (26, 27)


@dataclass(frozen=True, kw_only=True)
class LatentSizes(RoutedSizes):
    """`rank` numbers for each token, of which each head gets a key of `plain` values and a value of `value` values.

    `rotated` more values of the key are rotated, and all heads share them. Queries are made of `query_rank` numbers in
    the layers `ranked`, and of the width in the layers `straight`; a model has layers of one kind.
    """

    rank: int
    plain: int
    value: int
    query_rank: int
    ranked: Layers
    straight: Layers

    @property
    def queries(self) -> int:
        """The values of all query heads."""
        return self.heads * (self.plain + self.rotated)

    @property
    def values(self) -> int:
        """The values of all value heads."""
        return self.heads * self.value

    @property
    def compressed(self) -> int:
        """The values of a token that the cache holds."""
        return self.rank + self.rotated

    @property
    def expanded(self) -> int:
        """The values of all heads, and their keys without the rotated values."""
        return self.heads * (self.plain + self.value)


# The class adds 1e-6 in the norms of its latents, llama.cpp what the other norms add: up to here no logit shows it.
_LARGEST_EPSILON = 0.01


def read_sizes(config: ModelConfig, straight: tuple[int, ...] = _STRAIGHT) -> LatentSizes:
    """The sizes; models with one of the numbers of layers in `straight` make queries of the width.

    Raises UnsupportedModel where llama.cpp tells otherwise by that number how queries are made.
    """
    layers, heads = count_layers(config), config.count("num_attention_heads")
    ranked = config.get("q_lora_rank") is not None
    if ranked is (layers in straight):
        raise UnsupportedModel(
            f"llama.cpp tells by the number of layers how queries are made, and is wrong about this model's {layers}"
        )
    if not config.flag("rope_interleave", True):
        raise UnsupportedModel("it rotates halves of its heads, and llama.cpp pairs")
    # Keys are made anew for every head, so heads never share them.
    config.without_effect("head_dim", "num_key_value_heads")
    if config.number("rms_norm_eps", 1e-6) > _LARGEST_EPSILON:
        raise UnsupportedModel("its norms add `rms_norm_eps`, which llama.cpp adds in the latent norms as well")
    plain, rotated = config.count("qk_nope_head_dim"), config.count("qk_rope_head_dim")
    value, rank = config.count("v_head_dim"), config.count("kv_lora_rank")
    decoder_sizes = DecoderSizes(
        vocabulary=config.count("vocab_size"),
        width=config.count("hidden_size"),
        layers=layers,
        feed_forward=config.count("intermediate_size"),
        # In the cache all heads share one key, of the numbers and of the values that are rotated.
        head=rank + rotated,
        heads=heads,
        key_heads=1,
        rotated=rotated,
    )
    every = frozenset(range(layers))
    return LatentSizes(
        **vars(moe.read_routed_sizes(config, decoder_sizes)),
        rank=rank,
        plain=plain,
        value=value,
        query_rank=config.count("q_lora_rank", 1),
        ranked=every if ranked else frozenset(),
        straight=frozenset() if ranked else every,
    )


def _describe_v2(config: ModelConfig, sizes: LatentSizes) -> dict[str, Any]:
    odd = {"topk_method": "greedy", "scoring_func": "softmax", "moe_layer_freq": 1, "norm_topk_prob": False}
    _check(config, odd)
    # A model of transformers has these, and uses neither.
    ungrouped = config.changed({"n_group": 1, "topk_group": 1})
    return {**_describe(config, sizes), **moe.describe_routed(ungrouped, sizes, "softmax")}


def describe_v3(config: ModelConfig, sizes: LatentSizes) -> dict[str, Any]:
    """The entries of a model after DeepSeek V3."""
    _check(config, {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "moe_layer_freq": 1})
    return {**_describe(config, sizes), **moe.describe_routed(config, sizes, "sigmoid")}


def _check(config: ModelConfig, expected: dict[str, Any]) -> None:
    other = [key for key, value in expected.items() if config.get(key, value) not in (value, None)]
    if other:
        raise UnsupportedModel(f"it chooses its experts otherwise than llama.cpp does (`{other[0]}`)")


def _describe(config: ModelConfig, sizes: LatentSizes) -> dict[str, Any]:
    return {**_describe_rotation(config, sizes), **describe_latent(sizes)}


def describe_latent(sizes: LatentSizes) -> dict[str, Any]:
    """The entries of the numbers that queries, keys and values are made of."""
    ranked = {"attention.q_lora_rank": sizes.query_rank} if sizes.ranked else {}
    return {
        **ranked,
        "attention.kv_lora_rank": sizes.rank,
        "attention.value_length": sizes.rank,
        "attention.key_length_mla": sizes.plain + sizes.rotated,
        "attention.value_length_mla": sizes.value,
    }


def _describe_rotation(config: ModelConfig, sizes: LatentSizes) -> dict[str, Any]:
    """YaRN as DeepSeek has it: attention is sharper by a logarithm of the factor, and rotation leaves lengths alone."""
    key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    scaling = rotary.parameters(config)
    kind = rotary.kind_of(scaling)
    if kind not in ("default", "yarn") and scaling.get("mscale_all_dim"):
        raise UnsupportedModel("its `mscale_all_dim` sharpens attention, which llama.cpp does for YaRN alone")
    if kind != "yarn":
        return decoder.describe(config, sizes)
    if not scaling.get("mscale_all_dim"):
        raise UnsupportedModel("its YaRN has no `mscale_all_dim`, without which llama.cpp sharpens attention twice")
    multiplier = rotary.shared_scale(scaling)
    bare = {name: value for name, value in scaling.values.items() if not name.startswith("mscale")}
    entries = decoder.describe(config.changed({key: bare}), sizes)
    # llama.cpp expects the 0.1 of the formula in here.
    return {**entries, "rope.scaling.yarn_log_multiplier": 0.1 * multiplier}


def _take_keys(sizes: LatentSizes) -> Reversible:
    return TakeRows(sizes.rank, sizes.plain + sizes.value, 0, sizes.plain, turned=True)


def _take_values(sizes: LatentSizes) -> Reversible:
    return TakeRows(sizes.rank, sizes.plain + sizes.value, sizes.plain, sizes.value)


LATENT_ALONE = (
    *linear("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa", "compressed", "width", bias=False),
    *norm("self_attn.kv_a_layernorm", "attn_kv_a_norm", "rank"),
    Known(
        LAYER + "self_attn.kv_b_proj.weight",
        (
            Target("blk.{}.attn_k_b.weight", ("heads", "rank", "plain"), _take_keys),
            Target("blk.{}.attn_v_b.weight", ("heads", "value", "rank"), _take_values),
        ),
        ("expanded", "rank"),
    ),
    *linear("self_attn.o_proj", "attn_output", "width", "values", bias=False),
)
LATENT = (*decoder.NORMS, *LATENT_ALONE)
RANKED = (
    *linear("self_attn.q_a_proj", "attn_q_a", "query_rank", "width", bias=False),
    *norm("self_attn.q_a_layernorm", "attn_q_a_norm", "query_rank"),
    *linear("self_attn.q_b_proj", "attn_q_b", "queries", "query_rank", bias=False),
)
_ROUTED = (*moe.EXPERTS, *moe.shared("mlp.shared_experts"))
TENSORS = (
    *decoder.ENDS,
    *LATENT,
    *in_layers("dense", *decoder.GATED),
    *in_layers("routed", *_ROUTED),
    *in_layers("straight", *linear("self_attn.q_proj", "attn_q", "queries", "width", bias=False)),
    *in_layers("ranked", *RANKED),
)


def _read_plain_sizes(config: ModelConfig) -> RoutedSizes:
    plain = config.changed({"head_dim": None, "num_key_value_heads": None})
    config.without_effect("num_key_value_heads", "head_dim", "kv_lora_rank", "q_lora_rank")
    config.without_effect("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    return moe.read_routed_sizes(config, decoder.read_sizes(plain))


def _describe_plain(config: ModelConfig, sizes: RoutedSizes) -> dict[str, Any]:
    _check(config, {"topk_method": "greedy", "scoring_func": "softmax", "moe_layer_freq": 1, "n_group": 1})
    scaled = rotary.kind_of(rotary.parameters(config)) != "default"
    if rotary.base(config) != _OCR_BASE or scaled:
        raise UnsupportedModel(f"it rotates by another base than {_OCR_BASE:.0f}, which llama.cpp does not know here")
    if config.get("sliding_window") or config.get("sliding_window_size"):
        raise UnsupportedModel("it attends to windows (`sliding_window`), and llama.cpp's `deepseek2-ocr` to all")
    return {**decoder.describe(config, sizes), **moe.describe_routed(config, sizes, "softmax")}


# llama.cpp ends the process for any other base of the rotation.
_OCR_BASE = 10000.0
# The language model of DeepSeek OCR: each head has keys and values of its own.
WHOLE_HEADS = Family(
    classes=(),
    architecture="deepseek2-ocr",
    tensors=(*decoder.UNGATED, *in_layers("dense", *decoder.GATED), *in_layers("routed", *_ROUTED)),
    sizes=RoutedSizes,
    read_sizes=_read_plain_sizes,
    describe=_describe_plain,
)
DEEPSEEK2 = Family(
    classes=("DeepseekV2ForCausalLM",),
    architecture="deepseek2",
    tensors=TENSORS,
    sizes=LatentSizes,
    read_sizes=read_sizes,
    describe=_describe_v2,
    instead=lambda config: WHOLE_HEADS if config.get("use_mla") is False else None,
)
DEEPSEEK3 = Family(
    classes=("DeepseekV3ForCausalLM", "Glm4MoeLiteForCausalLM"),
    architecture="deepseek2",
    tensors=(
        *TENSORS,
        *moe.PREFERENCE,
        *predicting.next_layer(*LATENT, *RANKED, *_ROUTED, *moe.PREFERENCE),
    ),
    sizes=LatentSizes,
    read_sizes=read_sizes,
    describe=describe_v3,
)


def without_experts(config: ModelConfig) -> ModelConfig:
    """The settings of a model with DeepSeek's attention and no experts, as Youtu is one."""
    own = {"moe_intermediate_size": config.get("intermediate_size"), "n_routed_experts": 1, "n_shared_experts": 1}
    return config.changed({**own, "first_k_dense_replace": config.get("num_hidden_layers"), "mlp_layer_types": None})


def _describe_dense(config: ModelConfig, sizes: LatentSizes) -> dict[str, Any]:
    return {
        **_describe(config, sizes),
        "leading_dense_block_count": sizes.layers,
        "expert_feed_forward_length": sizes.feed_forward,
        "expert_shared_count": 0,
    }


YOUTU = Family(
    classes=("YoutuForCausalLM",),
    architecture="deepseek2",
    tensors=TENSORS,
    sizes=LatentSizes,
    read_sizes=lambda config: read_sizes(without_experts(config)),
    describe=_describe_dense,
)
FAMILIES = (DEEPSEEK2, DEEPSEEK3, YOUTU)
