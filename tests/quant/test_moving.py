"""Transforms that move rows or blocks do to blocks what they do to numbers, so codes of quantized models pass them."""

from __future__ import annotations

import numpy as np
import pytest

from quant import quantize
from quant.convert.planning import plan_model
from quant.convert.reordering import TakeBlocks, TakePaired, TileColumns, TileRows, moves_blocks
from quant.convert.transforms import AddOne, EverySecondRow, PairRotaryHalves, Share, TakeRows, Transpose, Ungroup
from quant.plan import Transform
from quant.types import QuantType
from tests.quant.test_mlx import GROUP, both, folder
from tests.quant.zoo.sketched import PREDICTING

MOVES = [
    PairRotaryHalves(16),
    EverySecondRow(1),
    Ungroup(2, 8),
    Share(1, 3),
    TileRows(2, 3, 4, 24),
    TileColumns(2, 4, 32),
    TakeBlocks(256, 12, ((0, 2), (5, 3))),
    TakeRows(256, 12, 3, 6),
    TakePaired(TakeRows(256, 12, 4, 8), 8),
]
CHANGES = [AddOne(), Transpose(48, 256), TileColumns(4, 4, 16), TakeRows(256, 12, 3, 6, turned=True)]


@pytest.mark.parametrize("transform", MOVES, ids=lambda transform: type(transform).__name__)
def test_what_moves_rows_or_blocks_moves_those_of_any_type(transform: Transform) -> None:
    x = np.random.default_rng(5).standard_normal((48, 256)).astype(np.float32)
    as_one = x.reshape(1, -1) if not transform.rows and not isinstance(transform, Share) else x
    wanted = quantize(transform.apply(as_one).reshape(-1, 256), QuantType.Q8_0)
    np.testing.assert_array_equal(transform.apply(quantize(x, QuantType.Q8_0)), wanted)
    assert moves_blocks(transform, QuantType.Q8_0.block)


@pytest.mark.parametrize("transform", CHANGES, ids=lambda transform: type(transform).__name__)
def test_what_changes_blocks_is_no_movement(transform: Transform) -> None:
    assert not moves_blocks(transform, QuantType.Q8_0.block)


@pytest.mark.parametrize("name", ["qwen3next, heads", "qwen35, heads"])
def test_codes_of_linear_attention_are_taken_over(name: str) -> None:
    sketch = PREDICTING[name]._replace(predicting=False)
    theirs, _ = both(sketch, {})
    plan = plan_model(folder(sketch, theirs, quantization={"group_size": GROUP, "bits": 4}))
    kinds = {tensor.name: tensor.published_type for tensor in plan.tensors if tensor.packing}
    for part in ("attn_qkv", "attn_gate", "ssm_out"):
        assert kinds[f"blk.0.{part}.weight"] is QuantType.Q4_1
