"""Gemma 1 to 3 (text) and EmbeddingGemma: norms stored as distance from one, soft-caps, windows, one embedding.

Sources: `modeling_gemma*.py` of transformers, `models/gemma*.cpp` of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quant.convert.base import Family, headless
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, rotary
from quant.convert.families.decoder import DecoderSizes, norm
from quant.convert.pooling import DENSE
from quant.errors import UnsupportedModel

_NO_CAP = 1e9
GELU = ("gelu_pytorch_tanh", "gelu")
# llama.cpp tells Gemma's 27 B, which scales attention in its own way, by the number of layers.
_ODD_SCALE = {"gemma2": 46, "gemma3": 62}


def _check_scale(config: ModelConfig, sizes: DecoderSizes, architecture: str) -> None:
    """llama.cpp has the scale of attention built in; raises where the model has another."""
    odd = sizes.layers == _ODD_SCALE[architecture]
    built_in = sizes.width // sizes.heads if odd else sizes.head
    if config.number("query_pre_attn_scalar", 256) != built_in:
        raise UnsupportedModel(f"its `query_pre_attn_scalar` is not {built_in}, the only one that llama.cpp knows")


def cap(config: ModelConfig, key: str, default: float | None) -> float:
    """The cap of logits under `key`; llama.cpp takes numbers alone, so None becomes one that no logit comes near."""
    value = config.get(key, default)
    return _NO_CAP if value is None else config.number(key, default)


def _describe_two(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    _check_scale(config, sizes, "gemma2")
    return {
        **decoder.describe(config, sizes),
        "attn_logit_softcapping": cap(config, "attn_logit_softcapping", 50.0),
        "final_logit_softcapping": cap(config, "final_logit_softcapping", 30.0),
        **decoder.windows(config, sizes, every=2),
    }


def _complete(config: ModelConfig) -> ModelConfig:
    """The settings with the defaults of transformers, which Gemma 3's own files leave out."""
    return config.filled(
        {
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "vocab_size": 262_208,
            "max_position_embeddings": 131_072,
            "hidden_activation": "gelu_pytorch_tanh",
        }
    )


def _describe_three(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    config = _complete(config)
    _check_scale(config, sizes, "gemma3")
    entries = decoder.describe(config, sizes)
    entries["rope.freq_base"] = rotary.base(config, default=1e6)
    cap = config.get("final_logit_softcapping")
    if cap is not None:
        entries["final_logit_softcapping"] = config.number("final_logit_softcapping")
    config.without_effect("attn_logit_softcapping")
    return {
        **entries,
        **decoder.windows(config.filled({"sliding_window_pattern": 6}), sizes, optional=True),
        "rope.freq_base_swa": rotary.local_base(config),
    }


FOUR_NORMS = (
    *norm("input_layernorm", "attn_norm"),
    *norm("post_attention_layernorm", "post_attention_norm"),
    *norm("pre_feedforward_layernorm", "ffn_norm"),
    *norm("post_feedforward_layernorm", "post_ffw_norm"),
)
GEMMA = Family(
    classes=("GemmaForCausalLM",),
    architecture="gemma",
    tensors=decoder.added_one(decoder.BASE + decoder.NORMS),
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=decoder.describe,
    activations=GELU,
    tied=True,
)
GEMMA2 = Family(
    classes=("Gemma2ForCausalLM",),
    architecture="gemma2",
    tensors=decoder.added_one(decoder.BASE + FOUR_NORMS),
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=_describe_two,
    activations=GELU,
    tied=True,
)
GEMMA3 = Family(
    classes=("Gemma3ForCausalLM",),
    architecture="gemma3",
    tensors=decoder.added_one(decoder.BASE + FOUR_NORMS + decoder.HEAD_NORMS),
    sizes=DecoderSizes,
    read_sizes=lambda config: decoder.read_sizes(_complete(config)),
    describe=_describe_three,
    activations=GELU,
    tied=True,
)


@dataclass(frozen=True, kw_only=True)
class _EmbeddingSizes(DecoderSizes):
    """`dense` is the length of a vector between the two matrices after the pooling, 0 where there are none."""

    dense: int = 0


def _describe_embedding(config: ModelConfig, sizes: _EmbeddingSizes) -> dict[str, Any]:
    """Attention goes both ways: to earlier and later tokens, in most layers up to half a window away."""
    if config.number("query_pre_attn_scalar", 256) != sizes.head:
        raise UnsupportedModel(f"its `query_pre_attn_scalar` is not {sizes.head}, the only one that llama.cpp knows")
    dense = {
        "dense_2_feat_in": sizes.width,
        "dense_2_feat_out": sizes.dense,
        "dense_3_feat_in": sizes.dense,
        "dense_3_feat_out": sizes.width,
    }
    pattern = decoder.window_pattern(config.filled({"sliding_window_pattern": 6}), sizes)
    return {
        **decoder.describe(config, sizes),
        "attention.causal": False,
        "attention.sliding_window": decoder.window(config) or 2 * config.count("max_position_embeddings", 2048),
        **decoder.check_encoder_windows(config, pattern, "sliding_window"),
        "rope.freq_base": rotary.base(config, default=1e6),
        "rope.freq_base_swa": rotary.local_base(config),
        **(dense if sizes.dense else {}),
    }


def _bidirectional(config: ModelConfig) -> ModelConfig:
    if not config.flag("use_bidirectional_attention"):
        raise UnsupportedModel("it is a part of Gemma 3 without an output, and makes no embeddings")
    return _complete(config)


EMBEDDING = Family(
    classes=("Gemma3TextModel",),
    architecture="gemma-embedding",
    tensors=headless(GEMMA3).tensors + DENSE,
    sizes=_EmbeddingSizes,
    read_sizes=lambda config: _EmbeddingSizes(**vars(decoder.read_sizes(_bidirectional(config)))),
    describe=lambda config, sizes: _describe_embedding(_complete(config), sizes),
    unused=headless(GEMMA3).unused,
    activations=GELU,
    encoder=True,
    tied=True,
)
FAMILIES = (GEMMA, GEMMA2, GEMMA3, EMBEDDING)
