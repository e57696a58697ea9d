"""Baichuan 1 and 2: Llama's pattern with one matrix for queries, keys and values; 13B tells positions by a bias.

Sources: the code in the models' repositories, `baichuan.cpp` of llama.cpp.
"""

from __future__ import annotations

from typing import Any

from quant.convert.base import HEAD, Family, Known, Target, Times, tensor
from quant.convert.config import ModelConfig
from quant.convert.families import decoder
from quant.convert.families.decoder import LAYER, DecoderSizes
from quant.convert.reordering import TakePaired
from quant.convert.transforms import TakeRows, UnitRows
from quant.errors import UnsupportedModel
from quant.plan import Reversible

# The numbers of layers by which llama.cpp knows the model that rotates, and the model with a bias by distance.
_ROTATED, _BIASED = 32, 40
# Baichuan 2 is told by the size of its vocabulary, as other engines tell it: the length of a row of its output is 1.
_SECOND = 125_696


def _read_sizes(config: ModelConfig) -> DecoderSizes:
    sizes = decoder.read_sizes(config)
    if sizes.layers not in (_ROTATED, _BIASED):
        raise UnsupportedModel(
            f"it has {sizes.layers} layers, and llama.cpp knows Baichuan with {_ROTATED}, which rotates, and with "
            f"{_BIASED}, which has a bias by distance"
        )
    if sizes.heads != sizes.key_heads:
        raise UnsupportedModel("its heads share keys, and those of Baichuan do not")
    return sizes


def _describe(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    # Both are about training alone.
    config.without_effect("z_loss_weight", "_from_model_config")
    length = config.get("max_position_embeddings") or config.get("model_max_length")
    config.without_effect("model_max_length")
    return decoder.describe(config.changed({"max_position_embeddings": length}), sizes)


def _take(first: int, paired: bool) -> Any:
    """Queries, keys or values of the matrix that holds them all, in the order of Llama's heads."""

    def make(sizes: DecoderSizes) -> Reversible:
        taken = TakeRows(sizes.width, 3 * sizes.queries, first * sizes.queries, sizes.queries)
        return TakePaired(taken, sizes.head) if paired else taken

    return make


def _unit(sizes: DecoderSizes) -> Reversible | None:
    return UnitRows() if sizes.vocabulary == _SECOND else None


_PACKED = Known(
    LAYER + "self_attn.W_pack.weight",
    (
        Target("blk.{}.attn_q.weight", ("queries", "width"), _take(0, True)),
        Target("blk.{}.attn_k.weight", ("queries", "width"), _take(1, True)),
        Target("blk.{}.attn_v.weight", ("queries", "width"), _take(2, False)),
    ),
    (Times(3, "queries"), "width"),
)
BAICHUAN = Family(
    classes=("BaichuanForCausalLM", "BaiChuanForCausalLM"),
    architecture="baichuan",
    tensors=(
        decoder.EMBEDDING,
        *decoder.final_norm(),
        tensor("lm_head.weight", HEAD, "vocabulary", "width", transform=_unit),
        *decoder.NORMS,
        _PACKED,
        *decoder.linear("self_attn.o_proj", "attn_output", "width", "queries", bias=False),
        *decoder.GATED,
    ),
    sizes=DecoderSizes,
    read_sizes=_read_sizes,
    describe=_describe,
)
FAMILIES = (BAICHUAN,)
