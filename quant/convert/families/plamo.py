"""PLaMo 1: attention and the feed-forward part beside each other, behind one norm; heads share keys by turns.

Sources: the code in the model's repository, `plamo.cpp` of llama.cpp.
"""

from __future__ import annotations

from typing import Any

from quant.convert.base import Family, tensor
from quant.convert.config import ModelConfig
from quant.convert.families import decoder
from quant.convert.families.decoder import DecoderSizes, linear
from quant.convert.reordering import TileColumns, TileRows
from quant.errors import UnsupportedModel
from quant.plan import Reversible

# How many heads share a key head where the settings do not say; the length that the model was trained for, and the
# base of its rotation, which no setting changes.
_SHARING, _CONTEXT, _BASE = 8, 4096, 10000.0


def _usual(config: ModelConfig) -> ModelConfig:
    """The settings with the number of key heads, for which the class has another key."""
    heads, sharing = config.count("num_attention_heads"), config.count("n_shared_head", _SHARING)
    if heads % sharing:
        raise UnsupportedModel(f"{heads} attention heads cannot share keys by {sharing}")
    config.without_effect("num_key_value_heads")
    return config.changed(
        {
            "num_key_value_heads": heads // sharing,
            "max_position_embeddings": _CONTEXT,
            "head_dim": None,
            "rope_theta": _BASE,
        }
    )


def _describe(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    config.without_effect("max_position_embeddings")
    return decoder.describe(_usual(config), sizes)


def _rows(sizes: DecoderSizes) -> Reversible:
    """Queries, of which every `key_heads`-th shares a key head, beside each other where they share one."""
    return TileRows(sizes.heads // sizes.key_heads, sizes.key_heads, sizes.head)


def _columns(sizes: DecoderSizes) -> Reversible:
    return TileColumns(sizes.heads // sizes.key_heads, sizes.key_heads, sizes.head)


_LAYER, _BLOCK = "layers.layers.{}.", "blk.{}."
PLAMO = Family(
    classes=("PlamoForCausalLM",),
    architecture="plamo",
    tensors=(
        decoder.EMBEDDING,
        *decoder.final_norm(),
        decoder.OUTPUT,
        *(
            tensor(_LAYER + row.source.removeprefix(decoder.LAYER), row.target, *row.shape)
            for row in (
                *decoder.norm("norm", "attn_norm"),
                *linear("self_attn.k_proj", "attn_k", "keys", "width", bias=False),
                *linear("self_attn.v_proj", "attn_v", "keys", "width", bias=False),
                *linear("mlp.gate_proj", "ffn_gate", "feed_forward", "width", bias=False),
                *linear("mlp.up_proj", "ffn_up", "feed_forward", "width", bias=False),
                *linear("mlp.down_proj", "ffn_down", "width", "feed_forward", bias=False),
            )
        ),
        tensor(_LAYER + "self_attn.q_proj.weight", _BLOCK + "attn_q.weight", "queries", "width", transform=_rows),
        tensor(
            _LAYER + "self_attn.o_proj.weight", _BLOCK + "attn_output.weight", "width", "queries", transform=_columns
        ),
    ),
    sizes=DecoderSizes,
    read_sizes=lambda config: decoder.read_sizes(_usual(config)),
    describe=_describe,
    unused=r"layers\.layers\.\d+\.self_attn\.rotary_emb\.\w+",
)
FAMILIES = (PLAMO,)
