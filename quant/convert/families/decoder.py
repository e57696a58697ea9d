"""Decoders after Llama's pattern: the names of tensors, the sizes and the entries that they share.

A family puts its table together from these groups: rotary attention with shared key heads,
a gated feed-forward part, norms before both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from quant.convert.base import HEAD, Known, Length, MakeTransform, Shape, Sizes, Target, Times, count_layers, tensor
from quant.convert.config import ModelConfig
from quant.convert.families import rotary
from quant.convert.transforms import AddOne, PairRotaryHalves, Transpose
from quant.errors import MalformedFile, UnsupportedModel
from quant.plan import Reversible

LAYER = "layers.{}."
EMBEDDING = tensor("embed_tokens.weight", "token_embd.weight", "vocabulary", "width")
OUTPUT = tensor("lm_head.weight", HEAD, "vocabulary", "width")


@dataclass(frozen=True, kw_only=True)
class DecoderSizes(Sizes):
    """The sizes of a decoder.

    `heads` query heads of `head` values share `key_heads` heads of keys and of values. The first `rotated` values of a
    head are rotated.
    """

    feed_forward: int
    head: int
    heads: int
    key_heads: int
    rotated: int

    @property
    def queries(self) -> int:
        """The values of all query heads."""
        return self.heads * self.head

    @property
    def keys(self) -> int:
        """The values of all key heads, which are as many as all value heads have."""
        return self.key_heads * self.head

    @property
    def attention(self) -> int:
        """Queries, keys and values in one matrix."""
        return self.queries + 2 * self.keys


@dataclass(frozen=True, kw_only=True)
class PlacedSizes(DecoderSizes):
    """The sizes of a decoder with a vector for each of `positions` places."""

    positions: int


def layer(
    source: str,
    target: str,
    *shape: Length,
    required: bool = True,
    transform: MakeTransform | None = None,
    becomes: Shape = (),
) -> Known:
    """A tensor that every layer has; `becomes` is its shape in GGUF where it is another."""
    return tensor(LAYER + source, f"blk.{{}}.{target}", *shape, required=required, transform=transform, becomes=becomes)


def linear(source: str, target: str, rows: Length, columns: Length, bias: bool | None = None) -> tuple[Known, ...]:
    """A matrix and its bias, which is there (True), never (False), or perhaps (None)."""
    weight = layer(f"{source}.weight", f"{target}.weight", rows, columns)
    return (
        (weight,) if bias is False else (weight, layer(f"{source}.bias", f"{target}.bias", rows, required=bool(bias)))
    )


def transposed(source: str, target: str, rows: Length, columns: Length) -> tuple[Known, ...]:
    """A matrix that is stored as (inputs, outputs), as GPT-2 has them, and its bias."""

    def transpose(sizes: DecoderSizes) -> Reversible:
        return Transpose(sizes.length(rows), sizes.length(columns))

    return (
        layer(f"{source}.weight", f"{target}.weight", columns, rows, transform=transpose, becomes=(rows, columns)),
        layer(f"{source}.bias", f"{target}.bias", rows),
    )


def halves(source: str, rows: str, *targets: str) -> Known:
    """A matrix that holds two, each of as many rows."""
    names = tuple(Target(f"blk.{{}}.{target}.weight") for target in targets)
    return Known(f"{LAYER}{source}.weight", names, (Times(2, rows), "width"))


def norm(source: str, target: str, size: Length = "width", bias: bool = False) -> tuple[Known, ...]:
    """A norm in every layer, with or without bias."""
    weight = layer(f"{source}.weight", f"{target}.weight", size)
    return (weight, layer(f"{source}.bias", f"{target}.bias", size)) if bias else (weight,)


def final_norm(source: str = "norm", bias: bool = False) -> tuple[Known, ...]:
    """The norm before the output."""
    weight = tensor(f"{source}.weight", "output_norm.weight", "width")
    return (weight, tensor(f"{source}.bias", "output_norm.bias", "width")) if bias else (weight,)


NORMS = norm("input_layernorm", "attn_norm") + norm("post_attention_layernorm", "ffn_norm")
ATTENTION = (
    *linear("self_attn.q_proj", "attn_q", "queries", "width"),
    *linear("self_attn.k_proj", "attn_k", "keys", "width"),
    *linear("self_attn.v_proj", "attn_v", "keys", "width"),
    *linear("self_attn.o_proj", "attn_output", "width", "queries"),
)
HEAD_NORMS = norm("self_attn.q_norm", "attn_q_norm", "head") + norm("self_attn.k_norm", "attn_k_norm", "head")
GATED = (
    *linear("mlp.gate_proj", "ffn_gate", "feed_forward", "width"),
    *linear("mlp.up_proj", "ffn_up", "feed_forward", "width"),
    *linear("mlp.down_proj", "ffn_down", "width", "feed_forward"),
)
FUSED_GATED = (
    *linear("mlp.gate_up_proj", "ffn_up", Times(2, "feed_forward"), "width", bias=False),
    *linear("mlp.down_proj", "ffn_down", "width", "feed_forward", bias=False),
)
ENDS = (EMBEDDING, *final_norm(), OUTPUT)
BASE = (*ENDS, *ATTENTION, *GATED)
"""All but the norms of the layers, in which decoders differ most."""
UNGATED = (*ENDS, *NORMS, *ATTENTION)
"""All but the feed-forward part, for mixtures of experts."""
STANDARD = (*UNGATED, *GATED)


def pair(sizes: DecoderSizes) -> Reversible:
    """The transform of queries and keys for the architectures of llama.cpp that rotate neighbouring rows."""
    return PairRotaryHalves(sizes.head)


def paired(tensors: tuple[Known, ...]) -> tuple[Known, ...]:
    """The table with queries and keys transformed by `pair`, for architectures that rotate neighbouring rows."""
    wanted = ("blk.{}.attn_q.", "blk.{}.attn_k.")
    return tuple(known.transformed(pair) if known.target.startswith(wanted) else known for known in tensors)


def renamed(tensors: tuple[Known, ...], **names: str) -> tuple[Known, ...]:
    """The table with other parts of names in the source, `usual=other`; a part ends where a dot does."""
    return tuple(
        replace(known, source=".".join(names.get(part, part) for part in known.source.split("."))) for known in tensors
    )


def added_one(tensors: tuple[Known, ...]) -> tuple[Known, ...]:
    """The table with 1 added to all norm weights, for models that store the weight minus 1, such as Gemma."""
    return tuple(
        known.transformed(lambda sizes: AddOne()) if known.target.endswith("norm.weight") else known
        for known in tensors
    )


def read_sizes(config: ModelConfig) -> DecoderSizes:
    """The sizes in `config.json` by which the tensors are shaped."""
    width, heads = config.count("hidden_size"), config.count("num_attention_heads")
    key_heads = config.count("num_key_value_heads", heads)
    head = config.count("head_dim", width // heads or 1)
    if heads % key_heads:
        raise MalformedFile(f"{heads} attention heads cannot share {key_heads} key heads")
    rotated = int(head * rotary.share(config))
    if rotated % 2:
        raise UnsupportedModel(f"{rotated} values of a head cannot be rotated in pairs")
    return DecoderSizes(
        vocabulary=config.count("vocab_size"),
        width=width,
        layers=count_layers(config),
        feed_forward=config.count("intermediate_size"),
        head=head,
        heads=heads,
        key_heads=key_heads,
        rotated=rotated,
    )


def placed(config: ModelConfig) -> PlacedSizes:
    """The sizes of a decoder with a vector for each place."""
    return PlacedSizes(**vars(read_sizes(config)), positions=config.count("max_position_embeddings"))


def describe(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    """The entries of a decoder: sizes, normalization, rotary embedding."""
    return {
        "vocab_size": sizes.vocabulary,
        "context_length": config.count("max_position_embeddings", 2048),
        "embedding_length": sizes.width,
        **describe_blocks(sizes),
        "feed_forward_length": sizes.feed_forward,
        "attention.head_count": sizes.heads,
        "attention.head_count_kv": sizes.key_heads,
        "attention.key_length": sizes.head,
        "attention.value_length": sizes.head,
        **_describe_norm(config),
        "rope.dimension_count": sizes.rotated,
        **rotary.describe(config),
    }


def describe_blocks(sizes: Sizes) -> dict[str, Any]:
    """The number of blocks, and of those among them that predict further tokens, where there are any."""
    predicting = len(sizes.predicting)
    return {
        "block_count": sizes.layers + predicting,
        **({"nextn_predict_layers": predicting} if predicting else {}),
    }


def _describe_norm(config: ModelConfig) -> dict[str, Any]:
    for key in ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "layernorm_epsilon"):
        if config.get(key) is not None:
            return {"attention.layer_norm_epsilon": config.number(key)}
    return {"attention.layer_norm_rms_epsilon": config.number("rms_norm_eps", 1e-6)}


def window(config: ModelConfig, key: str = "sliding_window") -> int | None:
    """The length of the sliding window; None where there is none: files say so by null, 0 and negative numbers."""
    value = config.get(key)
    return None if value is None or (type(value) is int and value <= 0) else config.count(key)


def every_fourth_unrotated(config: ModelConfig, layers: int) -> bool:
    """Whether rotation is left out in every fourth layer, by the list `no_rope_layers` (1: rotated), else a number."""
    given, every = config.get("no_rope_layers"), config.count("no_rope_layer_interval", 4)
    rotated = given if isinstance(given, list) and given else [(number + 1) % every for number in range(layers)]
    return [bool(each) for each in rotated[:layers]] == [(number + 1) % 4 != 0 for number in range(layers)]


def bounded_by_window(config: ModelConfig, entries: dict[str, Any]) -> dict[str, Any]:
    """`entries` with the context cut to the sliding window, for architectures in which llama.cpp has no window.

    Within the length of the window the answers are right whether or not it slides, and in whichever layers it does.
    """
    config.without_effect("layer_types", "max_window_layers", "use_sliding_window")
    most = entries["context_length"]
    return entries | {"context_length": min(most, window(config) or most)}


def windows(config: ModelConfig, sizes: Sizes, every: int | None = None, optional: bool = False) -> dict[str, Any]:
    """The entries of windows in some layers; where these have no length, they see as far as the model was trained for.

    With `optional` the architecture may have no such layers, and no entries then.
    """
    if optional and config.get("layer_types") == ["full_attention"] * sizes.layers:
        config.without_effect("sliding_window", "sliding_window_pattern")
        return {}
    length = window(config) or config.count("max_position_embeddings", 2048)
    return {"attention.sliding_window": length, **window_pattern(config, sizes, every)}


def window_pattern(config: ModelConfig, sizes: Sizes, every: int | None = None) -> dict[str, Any]:
    """The entry with the layers that have a sliding window: by `layer_types`, else all but each `every`-th.

    `every` is `sliding_window_pattern` where it is None. llama.cpp needs a layer with a window where one has a length.
    """
    types = config.get("layer_types")
    if types is None:
        every = config.count("sliding_window_pattern") if every is None else every
        types = ["sliding_attention" if (n + 1) % every else "full_attention" for n in range(sizes.layers)]
    known = ("sliding_attention", "full_attention")
    if not isinstance(types, list) or len(types) != sizes.layers or any(kind not in known for kind in types):
        raise config.wrong("layer_types", f"a list that says of {sizes.layers} layers which attention they have")
    config.without_effect("sliding_window_pattern")
    if "sliding_attention" not in types:
        raise UnsupportedModel("none of its layers has a window (`layer_types`), and llama.cpp wants one in this kind")
    return {"attention.sliding_window_pattern": [kind == "sliding_attention" for kind in types]}


def check_encoder_windows(config: ModelConfig, entries: dict[str, Any], key: str) -> dict[str, Any]:
    """`entries` of an encoder's layers, whose window has the length `key`.

    Raises UnsupportedModel where llama.cpp would end the process, or let tokens see more than themselves alone.
    """
    if config.get(key) == 0:
        raise UnsupportedModel(f"its `{key}` is 0: tokens see themselves alone, and in llama.cpp all others")
    if all(entries["attention.sliding_window_pattern"]):
        raise UnsupportedModel("all of its layers have a window (`layer_types`), and llama.cpp wants one without")
    return entries


def scale(config: ModelConfig, key: str, default: float) -> float:
    """A factor of numbers in the model; 0 is refused, by which llama.cpp means that there is none."""
    if config.get(key) == 0:
        raise UnsupportedModel(f"its `{key}` is 0, by which llama.cpp means that there is none")
    return config.number(key, default)


def describe_experts(count: int, used: int) -> dict[str, Any]:
    """The entries of a mixture of `count` experts, of which `used` compute each token."""
    if not 0 < used <= count:
        raise MalformedFile(f"{used} of {count} experts cannot be used for a token")
    return {"expert_count": count, "expert_used_count": used}


def stacked(source: str, target: str, rows: Length, columns: Length) -> Known:
    """A matrix that every expert (`[]`) of a layer has."""
    return layer(f"{source}.weight", f"{target}_exps.weight", rows, columns)


def router(source: str) -> Known:
    """The matrix that decides which experts answer."""
    return layer(f"{source}.weight", "ffn_gate_inp.weight", "experts", "width")
