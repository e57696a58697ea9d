"""The scale of a whole matrix as a tensor of its own: `blk.0.ffn_up.scale`, by which llama.cpp multiplies the product.

An NVFP4 block has no place for it. Only some architectures multiply by it (`quant/gguf/architectures.py`); in others,
and of other matrices, the scale goes into the values. The level is chosen later, so the tensor is there at every level:
a smaller one is made of the codes and the scales of their blocks alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from quant.convert.transforms import Scale
from quant.gguf.architectures import SCALED
from quant.plan import Part, TensorPlan
from quant.stream.packed.floats import PackedNvfp4


@dataclass(frozen=True, slots=True)
class Reciprocal:
    """1 / x, of scales that divide."""

    rows: int = 1

    def apply(self, x: np.ndarray) -> np.ndarray:
        """float32, as the scales are."""
        with np.errstate(divide="ignore"):
            found: np.ndarray = np.float32(1) / x
        return found

    def undo(self, x: np.ndarray, out: np.ndarray) -> None:
        """As `Reversible`, within two roundings."""
        np.divide(np.float32(1), x, out=out)


def scales_apart(tensors: Iterable[TensorPlan], architecture: str) -> Iterator[TensorPlan]:
    """The tensors, and behind each matrix whose scale can be a tensor of its own that tensor."""
    known = SCALED.get(architecture, frozenset())
    read: set[tuple[Part, ...]] = set()
    for tensor in tensors:
        packing, before = tensor.packing, tensor.name.removesuffix(".weight")
        if not isinstance(packing, PackedNvfp4) or not packing.whole or before.split(".")[-1] not in known:
            yield tensor
            continue
        parts = tuple(companions[-1] for companions in tensor.companions)
        # Two matrices may have rows of one source, and then the bytes of its scale count once.
        size = 0 if parts in read else sum(part.size for part in parts)
        read.add(parts)
        yield replace(
            tensor,
            size=tensor.size - size,
            packing=packing.without_whole(),
            companions=tuple(companions[:-1] for companions in tensor.companions),
        )
        yield TensorPlan(
            f"{before}.scale",
            (tensor.shape[0] if len(tensor.shape) > 2 else 1,),
            "F32",
            source=tensor.source,
            shard=parts[0].shard,
            offset=parts[0].offset,
            size=size,
            transform=Scale(packing.whole) if packing.whole > 0 else Reciprocal(),
            parts=parts,
        )
