"""Models whose layers have sizes of their own: OpenELM, DeciLM and Llama Nemotron.

Sources: the code in the models' repositories, `openelm.cpp` and `deci.cpp` of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from quant.convert.base import Family, Layers, count_layers, in_layers, tensor
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, rotary
from quant.convert.families.decoder import DecoderSizes, linear, norm
from quant.convert.families.unrotated import block
from quant.errors import MalformedFile, UnsupportedModel


@dataclass(frozen=True, kw_only=True)
class TaperedSizes(DecoderSizes):
    """The heads, the key heads and the width of the feed-forward part of each layer, 0 where it has none.

    `attending` are the layers with attention, `multiplying` those with a matrix in its place, `feeding` those with a
    feed-forward part.
    """

    heads_of: tuple[int, ...]
    key_heads_of: tuple[int, ...]
    wide_of: tuple[int, ...]

    def at(self, layer: int) -> Self:
        """The sizes of one layer."""
        return replace(
            self, heads=self.heads_of[layer], key_heads=self.key_heads_of[layer], feed_forward=self.wide_of[layer]
        )

    @property
    def attending(self) -> Layers:
        """The layers with attention."""
        return frozenset(number for number, count in enumerate(self.key_heads_of) if count)

    @property
    def multiplying(self) -> Layers:
        """The layers that have one matrix instead of attention."""
        return frozenset(number for number, count in enumerate(self.heads_of) if count) - self.attending

    @property
    def normed(self) -> Layers:
        """The layers with a norm in front of either."""
        return self.attending | self.multiplying

    @property
    def feeding(self) -> Layers:
        """The layers with a feed-forward part."""
        return frozenset(number for number, count in enumerate(self.wide_of) if count)


def _described(entries: dict[str, Any], sizes: TaperedSizes) -> dict[str, Any]:
    """The entries with the sizes of every layer."""
    return {
        **entries,
        "feed_forward_length": list(sizes.wide_of),
        "attention.head_count": list(sizes.heads_of),
        "attention.head_count_kv": list(sizes.key_heads_of),
    }


def _checked(sizes: TaperedSizes) -> TaperedSizes:
    """The sizes; MalformedFile where the heads of a layer cannot share its key heads."""
    for heads, key_heads in zip(sizes.heads_of, sizes.key_heads_of, strict=True):
        if key_heads and heads % key_heads:
            raise MalformedFile(f"{heads} attention heads cannot share {key_heads} key heads")
    return sizes


def _numbers(config: ModelConfig, key: str, layers: int) -> tuple[Any, ...]:
    """A positive number for each layer."""
    values = config.get(key)
    fine = isinstance(values, list) and all(type(each) in (int, float) and 0 < each < 1 << 20 for each in values)
    if not fine or len(values) != layers:
        raise config.wrong(key, f"a list of positive numbers, one for each of {layers} layers")
    return tuple(values)


def _divisible(value: float, divisor: int) -> int:
    """The multiple of `divisor` next to a number, at least one, and no more than a tenth below the number."""
    near = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return near + divisor if near < 0.9 * value else near


def _read_elm_sizes(config: ModelConfig) -> TaperedSizes:
    layers, width, head = (
        count_layers(config, "num_transformer_layers"),
        config.count("model_dim"),
        config.count("head_dim"),
    )
    expected = {
        "normalize_qk_projections": True,
        "share_input_output_layers": True,
        "ffn_with_glu": True,
        "activation_fn_name": "swish",
        "normalization_layer_name": "rms_norm",
    }
    wrong = [key for key, value in expected.items() if config.get(key, value) != value]
    if wrong or head % 2:
        raise UnsupportedModel(f"it computes otherwise than llama.cpp's `openelm` does (`{[*wrong, 'head_dim'][0]}`)")
    heads, key_heads = (_numbers(config, key, layers) for key in ("num_query_heads", "num_kv_heads"))
    if not all(type(each) is int for each in (*heads, *key_heads)):
        raise config.wrong("num_query_heads", "a list of whole numbers")
    divisor = config.count("ffn_dim_divisor", 256)
    wide = tuple(_divisible(each * width, divisor) for each in _numbers(config, "ffn_multipliers", layers))
    config.without_effect("qk_multipliers", "num_gqa_groups")  # they made the numbers of heads, which are given
    return _checked(
        TaperedSizes(
            vocabulary=config.count("vocab_size"),
            width=width,
            layers=layers,
            feed_forward=max(wide),
            head=head,
            heads=max(heads),
            key_heads=max(key_heads),
            rotated=head,
            heads_of=heads,
            key_heads_of=key_heads,
            wide_of=wide,
        )
    )


def _describe_elm(config: ModelConfig, sizes: TaperedSizes) -> dict[str, Any]:
    usual = config.changed(
        {
            "rope_theta": config.number("rope_freq_constant", 10000.0),
            "max_position_embeddings": config.count("max_context_length", 2048),
            "rms_norm_eps": 1e-6,
        }
    )
    config.without_effect("rope_max_length")
    return _described(decoder.describe(usual, sizes), sizes)


OPENELM = Family(
    classes=("OpenELMForCausalLM",),
    architecture="openelm",
    tensors=(
        tensor("token_embeddings.weight", "token_embd.weight", "vocabulary", "width"),
        tensor("norm.weight", "output_norm.weight", "width"),
        *block(
            "layers.{}.",
            (
                *norm("attn_norm", "attn_norm"),
                *norm("ffn_norm", "ffn_norm"),
                *linear("attn.qkv_proj", "attn_qkv", "attention", "width", bias=False),
                *linear("attn.out_proj", "attn_output", "width", "queries", bias=False),
                *norm("attn.q_norm", "attn_q_norm", "head"),
                *norm("attn.k_norm", "attn_k_norm", "head"),
                decoder.halves("ffn.proj_1", "feed_forward", "ffn_gate", "ffn_up"),
                *linear("ffn.proj_2", "ffn_down", "width", "feed_forward", bias=False),
            ),
        ),
    ),
    sizes=TaperedSizes,
    read_sizes=_read_elm_sizes,
    describe=_describe_elm,
    prefix=r"(transformer\.)?",
    unused=r"layers\.\d+\.attn\.pos_embedding\.inv_freq",
    tied=True,
)
# The widths of feed-forward parts are multiples of this.
_STEP = 256


def _read_deci_sizes(config: ModelConfig) -> TaperedSizes:
    blocks, per_layer = config.get("block_configs"), config.get("num_key_value_heads_per_layer")
    layers, heads = count_layers(config), config.count("num_attention_heads")
    config.without_effect("num_key_value_heads")
    if blocks is None:
        sizes = decoder.read_sizes(config.changed({"num_key_value_heads": None}))
        key_heads = _numbers(config, "num_key_value_heads_per_layer", layers) if per_layer else (heads,) * layers
        if not all(type(each) is int for each in key_heads):
            raise config.wrong("num_key_value_heads_per_layer", "a list of whole numbers")
        heads_of, wide = (heads,) * layers, (sizes.feed_forward,) * layers
    else:
        if not isinstance(blocks, list) or len(blocks) != layers or not all(isinstance(each, dict) for each in blocks):
            raise config.wrong("block_configs", f"a list that says what {layers} layers have")
        parts = [ModelConfig(f"{config.name}: block_configs", each) for each in blocks]
        pairs = [_attention(part.part("attention"), heads) for part in parts]
        heads_of, key_heads = tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
        wide = tuple(_wide(part.part("ffn"), config.count("hidden_size")) for part in parts)
        wide_most = max(wide) or 1
        sizes = decoder.read_sizes(config.changed({"num_key_value_heads": None, "intermediate_size": wide_most}))
    if not any(key_heads):
        raise UnsupportedModel("none of its layers attends (`block_configs`), and llama.cpp needs one that does")
    if not wide[-1] or any(count and not each for count, each in zip(heads_of, wide, strict=True)):
        raise UnsupportedModel("a layer attends and has no feed-forward part (`block_configs`), and llama.cpp omits it")
    return _checked(TaperedSizes(**vars(sizes), heads_of=heads_of, key_heads_of=key_heads, wide_of=wide))


def _attention(part: ModelConfig, heads: int) -> tuple[int, int]:
    """The heads and the key heads of a layer: none of both without attention, no key heads with a matrix instead."""
    odd = [
        key for key, value in part.values.items() if value and key in ("unshifted_sink", "is_llama4", "num_sink_tokens")
    ]
    if odd or part.get("window_length") is not None or part.flag("use_prefill_window_in_sink_attention"):
        raise UnsupportedModel("a layer attends otherwise than llama.cpp's `deci` does (`block_configs`)")
    if part.get("n_heads_in_group") is None:
        return (heads, 0) if part.flag("replace_with_linear") else (0, 0)
    group = part.count("n_heads_in_group")
    if heads % group:
        raise MalformedFile(f"{heads} attention heads cannot be in groups of {group} (`block_configs`)")
    return heads, heads // group


def _wide(part: ModelConfig, width: int) -> int:
    """The width of a layer's feed-forward part, 0 where it has none."""
    if part.flag("replace_with_linear") or part.flag("sparsify"):
        raise UnsupportedModel("a layer has a matrix for a feed-forward part, which llama.cpp's `deci` does not know")
    if part.get("ffn_mult") is None:
        return 0
    wide = int(2 * part.number("ffn_mult") * width / 3)
    if not 0 < wide < 1 << 24:
        raise part.wrong("ffn_mult", "a number by which the model's width becomes that of a feed-forward part")
    return -(-wide // _STEP) * _STEP


def _describe_deci(config: ModelConfig, sizes: TaperedSizes) -> dict[str, Any]:
    return _described(decoder.describe(config, sizes), sizes)


DECI = Family(
    classes=("DeciLMForCausalLM",),
    architecture="deci",
    tensors=(
        *decoder.ENDS,
        *in_layers("normed", *norm("input_layernorm", "attn_norm")),
        *in_layers("feeding", *norm("post_attention_layernorm", "ffn_norm"), *decoder.GATED),
        *in_layers("attending", *decoder.paired(decoder.ATTENTION)),
        *in_layers("multiplying", *linear("self_attn.linear_attn", "attn_output", "width", "width", bias=False)),
    ),
    sizes=TaperedSizes,
    read_sizes=_read_deci_sizes,
    describe=_describe_deci,
    computed=rotary.tables,
)
FAMILIES = (OPENELM, DECI)
