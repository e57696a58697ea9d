"""Blocks that predict further tokens (multi-token prediction), by the rows that families share.

Such a block stands behind the model's last layer and is built as one of its layers. One matrix joins the model's last
hidden state with the embedding of the next token. From both the block predicts the token after that. llama.cpp drafts
with it (`graph_mtp` in `models/*.cpp`). Its tensors have the next layer's number; some are named `nextn.*`. Sources:
`Qwen3_5MultiTokenPredictor` of vLLM, `modeling_deepseek.py` of DeepSeek V3, `conversion/*.py` of llama.cpp.
"""

from __future__ import annotations

from dataclasses import replace

from quant.convert.base import Known, Times, in_layers, tensor
from quant.convert.families.decoder import LAYER

# The number of a block of its own, counted from 0, where blocks have names of their own.
_OWN = "mtp.layers.{1}."


def _joining(join: str, embedding: str, hidden: str, norm: str) -> tuple[Known, ...]:
    """The matrix that joins the embedding with the hidden state, the norms before it, and the norm before the output.

    Each is the name in the source.
    """
    return (
        tensor(f"{join}.weight", "blk.{}.nextn.eh_proj.weight", "width", Times(2, "width")),
        tensor(f"{embedding}.weight", "blk.{}.nextn.enorm.weight", "width"),
        tensor(f"{hidden}.weight", "blk.{}.nextn.hnorm.weight", "width"),
        tensor(f"{norm}.weight", "blk.{}.nextn.shared_head_norm.weight", "width"),
    )


def next_layer(*layer: Known, norm: str = "shared_head.norm") -> tuple[Known, ...]:
    """The rows of a block that is named as one more layer, as DeepSeek's; `layer` are the rows of a layer.

    It may have an embedding and an output of its own; where these are the model's, they stay behind
    (`quant/convert/heads.py`).
    """
    joining = _joining(*(LAYER + name for name in ("eh_proj", "enorm", "hnorm", norm)))
    own = (
        tensor(LAYER + "embed_tokens.weight", OWN_EMBEDDING, "vocabulary", "width", required=False),
        tensor(LAYER + "shared_head.head.weight", OWN_OUTPUT, "vocabulary", "width", required=False),
    )
    return in_layers("predicting", *layer, *joining, *own)


def named_apart(*layer: Known) -> tuple[Known, ...]:
    """The rows of a block with names of its own (`mtp.*`), as Qwen's; `layer` are the rows of a layer."""
    joining = _joining("mtp.fc", "mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden", "mtp.norm")
    own = (replace(row, source=row.source.replace(LAYER, _OWN, 1)) for row in layer)
    return in_layers("predicting", *own, *joining)


OWN_EMBEDDING, OWN_OUTPUT = "blk.{}.nextn.embed_tokens.weight", "blk.{}.nextn.shared_head_head.weight"
