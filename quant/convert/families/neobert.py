"""NeoBERT: an encoder with norms in front, rotated heads and a gated feed-forward part.

Sources: the code in the model's repository, `neo-bert.cpp` of llama.cpp.
"""

from __future__ import annotations

from typing import Any

from quant.convert.base import Family, Times, tensor
from quant.convert.config import ModelConfig
from quant.convert.families import decoder
from quant.convert.families.decoder import DecoderSizes
from quant.convert.transforms import Ungroup
from quant.errors import UnsupportedModel
from quant.plan import Reversible

_BLOCK = "transformer_encoder.{}."
# The first token's vector is the text's, as the model's card has it (`llama_pooling_type`).
_FIRST_TOKEN = 2


def _usual(config: ModelConfig) -> ModelConfig:
    expected = {"rms_norm": True, "rope": True, "ngpt": False}
    wrong = [key for key, value in expected.items() if config.get(key, value) != value]
    if wrong:
        raise UnsupportedModel(f"it computes otherwise than llama.cpp's `neo-bert` does (`{wrong[0]}`)")
    # First values of weights, and how the computation is run.
    config.without_effect("embedding_init_range", "decoder_init_range", "encoder_init_range", "base_scale", "dropout")
    config.without_effect("flash_attention", "kwargs", "classifier_init_range")
    wide = config.count("intermediate_size")
    epsilon = config.number("norm_eps", 1e-6)
    return config.changed(
        {
            # Gate and up have two thirds of it each.
            "intermediate_size": int(2 * wide / 3),
            "max_position_embeddings": config.count("max_length", 1024),
            "rms_norm_eps": epsilon,
            "norm_epsilon": None,
        }
    )


def _describe(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    return {
        **decoder.describe(_usual(config), sizes),
        "rope.scaling.type": "none",
        "attention.causal": False,
    }


def _ungroup(sizes: DecoderSizes) -> Reversible:
    """Queries, keys and values alternate from head to head; llama.cpp's graph wants one after the other."""
    return Ungroup(sizes.heads, sizes.head)


NEOBERT = Family(
    classes=("NeoBERT", "NeoBERTLMHead"),
    architecture="neo-bert",
    tensors=(
        tensor("encoder.weight", "token_embd.weight", "vocabulary", "width"),
        tensor("layer_norm.weight", "enc.output_norm.weight", "width"),
        tensor(f"{_BLOCK}attention_norm.weight", "blk.{}.attn_norm.weight", "width"),
        tensor(f"{_BLOCK}qkv.weight", "blk.{}.attn_qkv.weight", "attention", "width", transform=_ungroup),
        tensor(f"{_BLOCK}wo.weight", "blk.{}.attn_output.weight", "width", "queries"),
        tensor(f"{_BLOCK}ffn_norm.weight", "blk.{}.ffn_norm.weight", "width"),
        tensor(f"{_BLOCK}ffn.w12.weight", "blk.{}.ffn_up.weight", Times(2, "feed_forward"), "width"),
        tensor(f"{_BLOCK}ffn.w3.weight", "blk.{}.ffn_down.weight", "width", "feed_forward"),
    ),
    sizes=DecoderSizes,
    read_sizes=lambda config: decoder.read_sizes(_usual(config)),
    describe=_describe,
    unused=r"freqs_cis|decoder\.(weight|bias)",
    activations=("swiglu", "SwiGLU", "silu"),
    encoder=True,
    pooling=_FIRST_TOKEN,
)
FAMILIES = (NEOBERT,)
