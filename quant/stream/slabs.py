"""A slab: some whole rows of the source, and the bytes of the output that are made of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

import quant
from quant.errors import BadValues
from quant.feedback import matrix
from quant.feedback.factor import GramFactor
from quant.importance import Importance
from quant.kernels import blocks
from quant.plan import Read, TensorPlan
from quant.stream.streams import Mark
from quant.types import QuantType


class Slab(NamedTuple):
    """Some whole rows of a tensor as the source has them.

    - `rows`: [rows, columns] of the source's dtype; empty in a slab that only carries its mark.
    - `bytes_read`: bytes of weights that the pass has read so far, this slab included.
    - `mark`: the place at the end of the slab, None when no pass could resume there.
    - `read`: the part of the source that the rows belong to. `whole`: the tensor ends with these rows.
    - `companions`: the companions of a packed part, such as its scales.
    """

    tensor: TensorPlan
    rows: np.ndarray
    bytes_read: int
    mark: Mark | None = None
    read: Read | None = None
    whole: bool = False
    companions: tuple[np.ndarray, ...] = ()


def _check_magnitude(tensor: TensorPlan, rows: np.ndarray, type: QuantType) -> None:
    """Raises BadValues for a number that the type would cut; what only rounds to the largest one passes."""
    if type in (QuantType.F32, QuantType.BF16):
        return
    found, limit = _magnitude(rows), blocks.largest(type)
    if limit * (1 + 2.0**-12) <= found < np.inf:
        raise BadValues(
            f"tensor `{tensor.source}` holds a weight of {found:g}, and {type.name} ends at {limit:g}",
            hint="take the level BF16, which holds it",
        )


def _magnitude(rows: np.ndarray) -> float:
    """The largest magnitude, without a copy; uint16 holds the bits of BF16, of which the highest is the sign."""
    if rows.dtype == np.uint16:
        bits = max(int(rows.view(np.int16).max()), int(rows.max()) - (1 << 15))
        return float(np.array(max(0, bits) << 16, np.uint32).view(np.float32))
    if rows.dtype == np.float16:
        return 0.0  # every type holds these
    return max(float(rows.max()), -float(rows.min()))


def weights_of(slab: Slab, importance: Importance) -> np.ndarray | None:
    """The importance of the columns of a slab, float32 `(columns,)`; None where nothing is known of its matrix.

    The experts of a stack that the source has as one tensor share their mean.
    """
    tensor = slab.tensor
    experts = tensor.shape[0] if len(tensor.shape) > 2 else 1
    weights = importance.weights(tensor.name, tensor.shape[-1], experts)
    if weights is None or weights.ndim == 1:
        return weights
    found: np.ndarray = weights[slab.read.number] if slab.read and tensor.parts else weights.mean(axis=0)
    return found


def encode(slab: Slab, type: QuantType, importance: np.ndarray | None, factor: GramFactor | None = None) -> memoryview:
    """The rows of a slab, transformed and quantized to `type`, with errors weighed by `importance`, `(columns,)`.

    With a factor errors are fed back, and importance counts for nothing.
    """
    tensor, rows, transform = slab.tensor, slab.rows, slab.tensor.transform
    try:
        if packing := tensor.packing:
            arrays = (rows, *slab.companions)
            if packing.exact is type:
                return packing.blocks(arrays, transform).data.cast("B")
            rows = packing.values(arrays)
        if transform:
            rows = transform.apply(rows)
        if len(tensor.shape) == 1:
            rows = rows.reshape(1, -1)
        if rows.dtype == np.float64:
            rows = rows.astype("<f4")
        _check_magnitude(tensor, rows, type)
        if factor is not None:
            return matrix.quantize(rows, type, factor).data.cast("B")
        return quant.quantize(rows, type, importance, threads=1).data.cast("B")
    except BadValues as error:
        if error.hint:
            raise
        hint = "the source is damaged, or its training diverged"
        raise BadValues(f"tensor `{tensor.source}` holds NaN or infinity", hint=hint) from None
