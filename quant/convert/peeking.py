"""Values of a source that planning looks at: a few, read before the weights are."""

from __future__ import annotations

from math import prod

import numpy as np

from quant.convert.transforms import widen
from quant.plan import Files
from quant.safetensors import DTYPES, Entry

_NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}
# Two tensors are compared at `_PLACES` places, by `_VALUES` values at each.
_PLACES, _VALUES = 5, 1024


def peek(files: Files, entry: Entry, first: int, count: int) -> np.ndarray:
    """`count` values of an unquantized tensor from number `first` on, float32."""
    width = DTYPES[entry.dtype]
    return widen(
        np.frombuffer(files.read(entry.shard, entry.offset + first * width, count * width), _NUMPY[entry.dtype])
    )


def alike(files: Files, one: Entry, other: Entry) -> bool:
    """Whether two tensors have one shape and the same values, as far as samples of both tell."""
    if one.shape != other.shape or one.packing or other.packing or not {one.dtype, other.dtype} <= _NUMPY.keys():
        return False
    elements = prod(one.shape)
    count = min(_VALUES, elements)
    starts = sorted({(elements - count) * place // (_PLACES - 1) for place in range(_PLACES)})
    return all(np.array_equal(peek(files, one, at, count), peek(files, other, at, count)) for at in starts)
