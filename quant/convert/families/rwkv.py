"""RWKV 6 (Finch) and 7 (Goose): states for each head in place of attention, and inputs mixed with the token before.

Sources: `modeling_rwkv6.py`, which is published with the models; `modeling_rwkv7.py` of flash-linear-attention, whose
names version 7 has; `rwkv6-base.cpp` and `rwkv7-base.cpp` of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from quant.convert.base import HEAD, Family, Known, Layers, Length, Shape, Sizes, Times, count_layers, in_layers, tensor
from quant.convert.config import ModelConfig
from quant.convert.families import decoder
from quant.convert.transforms import Transpose
from quant.errors import UnsupportedModel
from quant.plan import Reversible

# The number that llama.cpp adds to the variance of each head.
_HEAD_EPSILON = 64e-5


@dataclass(frozen=True, kw_only=True)
class _RwkvSizes(Sizes):
    """Heads of `head` values; `feed_forward` is the width of the other half of a layer."""

    head: int
    feed_forward: int

    @property
    def heads(self) -> int:
        """The number of heads, which make up the width."""
        return self.width // self.head


@dataclass(frozen=True, kw_only=True)
class _FinchSizes(_RwkvSizes):
    """Matrices of the ranks `mixing` (for each of five inputs) and `decay`."""

    mixing: int
    decay: int


@dataclass(frozen=True, kw_only=True)
class _GooseSizes(_RwkvSizes):
    """Matrices of the ranks `decay`, `rate`, `value` and `gate`; the `first` layer mixes no values, the `others` do."""

    decay: int
    rate: int
    value: int
    gate: int
    first: Layers
    others: Layers


def _common(config: ModelConfig, head: str, usual: int) -> dict[str, Any]:
    """The sizes that both versions have: `head` is the key of a head's size, `usual` the width where none is given."""
    sizes = {
        "vocabulary": config.count("vocab_size"),
        "width": config.count("hidden_size"),
        "layers": count_layers(config),
        "head": config.count(head, 64),
        "feed_forward": config.count("intermediate_size", usual),
    }
    if sizes["width"] % sizes["head"]:
        raise UnsupportedModel(f"its heads of {sizes['head']} values do not make up its width")
    return sizes


def _describe(sizes: _RwkvSizes, epsilon: float) -> dict[str, Any]:
    return {
        "vocab_size": sizes.vocabulary,
        # A state has no length; this is what llama.cpp's own converter writes.
        "context_length": 1 << 20,
        "embedding_length": sizes.width,
        "block_count": sizes.layers,
        "feed_forward_length": sizes.feed_forward,
        "attention.head_count": 0,
        "attention.layer_norm_epsilon": epsilon,
        "wkv.head_size": sizes.head,
    }


def _check_heads(epsilon: float) -> None:
    if abs(epsilon - _HEAD_EPSILON) > 1e-6:
        raise UnsupportedModel(f"the norms of its heads add {epsilon:g}, and llama.cpp {_HEAD_EPSILON:g}")


def _read_finch(config: ModelConfig) -> _FinchSizes:
    width = config.count("hidden_size")
    sizes = _common(config, "head_size", int(width * 3.5) // 32 * 32)
    if config.count("attention_hidden_size", width) != width:
        raise UnsupportedModel("its states are of another width than the model (`attention_hidden_size`)")
    _check_heads(1e-5 * config.count("head_size_divisor", 8) ** 2)
    # After every `rescale_every` layers the class halves its numbers for half precision, which llama.cpp does not need.
    config.without_effect("rescale_every", "context_length", "model_version", "num_attention_heads")
    return _FinchSizes(**sizes, mixing=64 if width == 4096 else 32, decay=128 if width == 4096 else 64)


def _describe_finch(config: ModelConfig, sizes: _FinchSizes) -> dict[str, Any]:
    return {
        **_describe(sizes, config.number("layer_norm_epsilon", 1e-5)),
        "time_mix_extra_dim": sizes.mixing,
        "time_decay_extra_dim": sizes.decay,
    }


def _rank(config: ModelConfig, key: str, width: int, power: float, factor: float) -> int:
    """A rank, which grows with the width where the file does not say it."""
    return config.count(key, max(1, round(width**power * factor / 32)) * 32)


def _read_goose(config: ModelConfig) -> _GooseSizes:
    width = config.count("hidden_size")
    sizes = _common(config, "head_dim", 4 * width)
    for key, value in (("norm_first", True), ("norm_bias", True), ("attn", None)):
        if config.get(key, value) not in (value, None):
            raise UnsupportedModel(f"it computes otherwise than llama.cpp's `rwkv7` does (`{key}`)")
    if config.count("value_dim", width) != width if not isinstance(config.get("value_dim"), list) else False:
        raise UnsupportedModel("its values are of another width than the model (`value_dim`)")
    _check_heads(sizes["head"] * config.number("norm_eps", 1e-5))
    config.without_effect("attn_mode", "fuse_norm", "fuse_cross_entropy", "hidden_ratio", "num_heads", "norm_eps")
    config.without_effect("max_position_embeddings", "use_l2warp", "fuse_linear_cross_entropy", "value_dim")
    every = frozenset(range(sizes["layers"]))
    return _GooseSizes(
        **sizes,
        decay=_rank(config, "decay_low_rank_dim", width, 0.5, 1.8),
        rate=_rank(config, "a_low_rank_dim", width, 0.5, 1.8),
        value=_rank(config, "v_low_rank_dim", width, 0.5, 1.3),
        gate=_rank(config, "gate_low_rank_dim", width, 0.8, 0.6),
        first=frozenset([0]),
        others=every - {0},
    )


def _describe_goose(config: ModelConfig, sizes: _GooseSizes) -> dict[str, Any]:
    return {
        **_describe(sizes, config.number("norm_eps", 1e-5)),
        "attention.decay_lora_rank": sizes.decay,
        "attention.iclr_lora_rank": sizes.rate,
        "attention.value_residual_mix_lora_rank": sizes.value,
        "attention.gate_lora_rank": sizes.gate,
    }


def _both(source: str, target: str, bias: str = "bias") -> tuple[Known, ...]:
    """A norm with its bias."""
    return (
        tensor(f"{source}.weight", f"{target}.weight", "width"),
        tensor(f"{source}.bias", f"{target}.{bias}", "width"),
    )


def _shares(source: str, target: str, each: Iterable[str]) -> Known:
    """How much of the token before goes into each of several inputs, in one tensor."""
    return replace(tensor(source, f"blk.{{}}.{target}.weight", 1, 1, "width"), each=tuple(each))


def _vector(source: str, target: str) -> Known:
    return tensor(source, f"blk.{{}}.{target}.weight", 1, 1, "width", becomes=("width",))


def _matrix(source: str, target: str, rows: Length = "width", columns: Length = "width") -> Known:
    return tensor(f"{source}.weight", f"blk.{{}}.{target}.weight", rows, columns)


def _turned(source: str, target: str, rows: Length, columns: Length, before: Shape = ()) -> Known:
    """A matrix, or several, stored as (inputs, outputs)."""

    def transpose(sizes: Sizes) -> Reversible:
        return Transpose(sizes.length(rows), sizes.length(columns))

    shape, becomes = (*before, columns, rows), (*before, rows, columns)
    return tensor(source, f"blk.{{}}.{target}.weight", *shape, transform=transpose, becomes=becomes)


_FINCH = "blocks.{}.attention."
_FINCH_MIX = "blocks.{}.feed_forward."
FINCH = Family(
    classes=("Rwkv6ForCausalLM",),
    architecture="rwkv6",
    tensors=(
        tensor("embeddings.weight", "token_embd.weight", "vocabulary", "width"),
        *_both("blocks.0.pre_ln", "token_embd_norm"),
        *_both("ln_out", "output_norm"),
        tensor("head.weight", HEAD, "vocabulary", "width"),
        *_both("blocks.{}.ln1", "blk.{}.attn_norm"),
        *_both("blocks.{}.ln2", "blk.{}.attn_norm_2"),
        _vector(_FINCH + "time_maa_x", "time_mix_lerp_x"),
        _shares(_FINCH + "time_maa_[]", "time_mix_lerp_fused", "wkvrg"),
        _turned(_FINCH + "time_maa_w1", "time_mix_w1", Times(5, "mixing"), "width"),
        _turned(_FINCH + "time_maa_w2", "time_mix_w2", "width", "mixing", before=(5,)),
        _vector(_FINCH + "time_decay", "time_mix_decay"),
        _turned(_FINCH + "time_decay_w1", "time_mix_decay_w1", "decay", "width"),
        _turned(_FINCH + "time_decay_w2", "time_mix_decay_w2", "width", "decay"),
        tensor(_FINCH + "time_faaaa", "blk.{}.time_mix_first.weight", "heads", "head"),
        *(_matrix(_FINCH + name, f"time_mix_{name}") for name in ("receptance", "key", "value", "gate", "output")),
        *_both(_FINCH + "ln_x", "blk.{}.time_mix_ln"),
        _vector(_FINCH_MIX + "time_maa_k", "channel_mix_lerp_k"),
        _vector(_FINCH_MIX + "time_maa_r", "channel_mix_lerp_r"),
        _matrix(_FINCH_MIX + "key", "channel_mix_key", "feed_forward", "width"),
        _matrix(_FINCH_MIX + "value", "channel_mix_value", "width", "feed_forward"),
        _matrix(_FINCH_MIX + "receptance", "channel_mix_receptance"),
    ),
    sizes=_FinchSizes,
    read_sizes=_read_finch,
    describe=_describe_finch,
    prefix=r"(rwkv\.)?",
)
_GOOSE = "layers.{}.attn."


def _low_rank(source: str, target: str, rank: str, bias: bool = True) -> tuple[Known, ...]:
    """Two matrices in place of one, and what is added to them."""
    first = _matrix(f"{_GOOSE}{source}_lora.lora.0", f"time_mix_{target}1", rank, "width")
    second = _matrix(f"{_GOOSE}{source}_lora.lora.2", f"time_mix_{target}2", "width", rank)
    added = tensor(f"{_GOOSE}{source}_lora.lora.2.bias", f"blk.{{}}.time_mix_{target}0.weight", "width")
    return (first, second, added) if bias else (first, second)


GOOSE = Family(
    classes=("RWKV7ForCausalLM", "Rwkv7ForCausalLM"),
    architecture="rwkv7",
    tensors=(
        tensor("embeddings.weight", "token_embd.weight", "vocabulary", "width"),
        *_both("layers.0.pre_norm", "token_embd_norm"),
        *_both("norm", "output_norm"),
        decoder.OUTPUT,
        *_both("layers.{}.attn_norm", "blk.{}.attn_norm"),
        *_both("layers.{}.ffn_norm", "blk.{}.attn_norm_2"),
        _shares(_GOOSE + "x_[]", "time_mix_lerp_fused", "rwkvag"),
        *_low_rank("w", "w", "decay"),
        *_low_rank("a", "a", "rate"),
        *_low_rank("g", "g", "gate", bias=False),
        *in_layers("others", *_low_rank("v", "v", "value")),
        # llama.cpp wants these in the first layer too, of the rank of the rates, and does not read them.
        *in_layers("first", *(replace(known, zeros=True, required=False) for known in _low_rank("v", "v", "rate"))),
        tensor(_GOOSE + "k_k", "blk.{}.time_mix_k_k.weight", "width"),
        tensor(_GOOSE + "k_a", "blk.{}.time_mix_k_a.weight", "width"),
        tensor(_GOOSE + "r_k", "blk.{}.time_mix_r_k.weight", "heads", "head", becomes=("width",)),
        *(
            _matrix(f"{_GOOSE}{letter}_proj", f"time_mix_{name}")
            for letter, name in (("r", "receptance"), ("k", "key"), ("v", "value"), ("o", "output"))
        ),
        *_both(_GOOSE + "g_norm", "blk.{}.time_mix_ln"),
        tensor("layers.{}.ffn.x_k", "blk.{}.channel_mix_lerp_k.weight", "width"),
        _matrix("layers.{}.ffn.key", "channel_mix_key", "feed_forward", "width"),
        _matrix("layers.{}.ffn.value", "channel_mix_value", "width", "feed_forward"),
    ),
    sizes=_GooseSizes,
    read_sizes=_read_goose,
    describe=_describe_goose,
    activations=("sqrelu",),
)
FAMILIES = (FINCH, GOOSE)
