"""InternLM 2 and 2.5: Llama by other names, queries, keys and values of a group of heads together in one matrix.

Source: `modeling_internlm2.py` of its authors, whose program is not run. llama.cpp's architecture is Llama's.
"""

from __future__ import annotations

from quant.convert.base import Family, Known, Target, tensor
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, llama
from quant.convert.families.decoder import LAYER, DecoderSizes, linear, norm
from quant.convert.reordering import TakePaired
from quant.convert.transforms import TakeRows
from quant.errors import UnsupportedModel
from quant.plan import Reversible


def _take(sizes: DecoderSizes, first: int, count: int) -> TakeRows:
    """Rows `first` to `first + count` for every key head, which has its queries, the key and the value together."""
    return TakeRows(sizes.width, _queries(sizes) + 2 * sizes.head, first, count)


def _queries(sizes: DecoderSizes) -> int:
    """The rows of the queries that share a key head."""
    return sizes.heads // sizes.key_heads * sizes.head


def _take_queries(sizes: DecoderSizes) -> Reversible:
    return TakePaired(_take(sizes, 0, _queries(sizes)), sizes.head)


def _take_keys(sizes: DecoderSizes) -> Reversible:
    return TakePaired(_take(sizes, _queries(sizes), sizes.head), sizes.head)


def _take_values(sizes: DecoderSizes) -> Reversible:
    return _take(sizes, _queries(sizes) + sizes.head, sizes.head)


def _read_sizes(config: ModelConfig) -> DecoderSizes:
    if config.flag("bias"):
        raise UnsupportedModel("its matrices have biases, which no published model has")
    return decoder.read_sizes(config)


INTERNLM2 = Family(
    classes=("InternLM2ForCausalLM",),
    architecture="llama",
    tensors=(
        tensor("tok_embeddings.weight", "token_embd.weight", "vocabulary", "width"),
        tensor("output.weight", "output.weight", "vocabulary", "width"),
        *decoder.final_norm(),
        *norm("attention_norm", "attn_norm"),
        *norm("ffn_norm", "ffn_norm"),
        Known(
            LAYER + "attention.wqkv.weight",
            (
                Target("blk.{}.attn_q.weight", ("queries", "width"), _take_queries),
                Target("blk.{}.attn_k.weight", ("keys", "width"), _take_keys),
                Target("blk.{}.attn_v.weight", ("keys", "width"), _take_values),
            ),
            ("attention", "width"),
        ),
        *linear("attention.wo", "attn_output", "width", "queries", bias=False),
        *linear("feed_forward.w1", "ffn_gate", "feed_forward", "width", bias=False),
        *linear("feed_forward.w2", "ffn_down", "width", "feed_forward", bias=False),
        *linear("feed_forward.w3", "ffn_up", "feed_forward", "width", bias=False),
    ),
    sizes=DecoderSizes,
    read_sizes=_read_sizes,
    describe=llama.LLAMA.describe,
    computed=llama.LLAMA.computed,
)
FAMILIES = (INTERNLM2,)
