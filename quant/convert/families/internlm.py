"""InternLM 2 and 2.5: Llama by other names, queries, keys and values of a group of heads together in one matrix.

Source: `modeling_internlm2.py` of its authors, whose program is not run. llama.cpp's architecture is Llama's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quant.convert.base import Family, Known, Sizes
from quant.convert.config import Config
from quant.convert.families import decoder, llama
from quant.convert.families.decoder import layer, linear, norm
from quant.convert.transforms import PairRotaryHalves, TakeRows
from quant.errors import UnsupportedModel
from quant.plan import Transform


@dataclass(frozen=True, slots=True)
class _TakePaired:
    """Rows as `TakeRows` takes them, in the order of Llama's heads."""

    take: TakeRows
    head: int
    rows: int = 0

    def apply(self, x: np.ndarray) -> np.ndarray:
        return PairRotaryHalves(self.head).apply(self.take.apply(x))


def _transforms(sizes: Sizes) -> dict[str, Transform]:
    """For every key head there are its queries, the key and the value."""
    head, queries = sizes["head"], sizes["heads"] // sizes["shared"] * sizes["head"]
    together = queries + 2 * head

    def rows(first: int, count: int) -> TakeRows:
        return TakeRows(sizes["width"], together, first, count)

    return {
        "queries": _TakePaired(rows(0, queries), head),
        "keys": _TakePaired(rows(queries, head), head),
        "values": rows(queries + head, head),
    }


def _read_sizes(config: Config) -> dict[str, int]:
    if config.flag("bias"):
        raise UnsupportedModel("its matrices have biases, which no published model has")
    return decoder.read_sizes(config)


INTERNLM2 = Family(
    classes=("InternLM2ForCausalLM",),
    architecture="llama",
    tensors=(
        Known("tok_embeddings.weight", "token_embd.weight", ("vocabulary", "width")),
        Known("output.weight", "output.weight", ("vocabulary", "width")),
        *decoder.final_norm(),
        *norm("attention_norm", "attn_norm"),
        *norm("ffn_norm", "ffn_norm"),
        layer(
            "attention.wqkv.weight", "attn_q.weight blk.{}.attn_k.weight blk.{}.attn_v.weight", "attention", "width"
        )._replace(transform="queries keys values", result=("queries width", "keys width", "keys width")),
        *linear("attention.wo", "attn_output", "width", "queries", bias=False),
        *linear("feed_forward.w1", "ffn_gate", "feed_forward", "width", bias=False),
        *linear("feed_forward.w2", "ffn_down", "width", "feed_forward", bias=False),
        *linear("feed_forward.w3", "ffn_up", "feed_forward", "width", bias=False),
    ),
    read_sizes=_read_sizes,
    describe=llama.LLAMA.describe,
    transforms=_transforms,
)
FAMILIES = (INTERNLM2,)
