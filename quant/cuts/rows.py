"""Some of a tensor's rows: the bytes of the source that they are, in the type that they have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from quant.plan import Part, TensorPlan


def rows_of(tensor: TensorPlan, kept: Sequence[int]) -> TensorPlan:
    """A tensor with some of its rows alone, sorted numbers: of a stack, matrices; of a vector, values."""
    width = tensor.size // tensor.shape[0]
    runs = [list(run) for _, run in groupby(enumerate(kept), lambda pair: pair[1] - pair[0])]
    parts = tuple(Part(tensor.shard, tensor.offset + run[0][1] * width, len(run) * width) for run in runs)
    return replace(tensor, shape=(len(kept), *tensor.shape[1:]), size=len(kept) * width, parts=parts)
