"""Weights that are published small, at a level, in words: which stay as they are in the source, and which do not."""

from __future__ import annotations

from collections.abc import Mapping

from quant.plan import ModelPlan
from quant.types import QuantType

# Names of packings that are no loss: matrices that are stored otherwise, as floats.
_FLOATS = ("F32", "F16", "BF16")


def clauses(plan: ModelPlan, types: Mapping[str, QuantType]) -> list[str]:
    """One clause for each way in which weights of the plan are published small, where its tensors get `types`."""
    found: dict[tuple[str, str], None] = {}
    for tensor in plan.tensors:
        kept = tensor.published_type is types[tensor.name]
        if tensor.packing and tensor.packing.name not in _FLOATS:
            found[tensor.packing.name, types[tensor.name].name if kept else ""] = None
        elif tensor.published and kept:
            found[tensor.dtype, tensor.dtype] = None
    return [_clause(name, type) for name, type in found]


def _clause(name: str, type: str) -> str:
    if name == type:
        return f"weights stay {type}, as they are published"
    return f"the {name} are taken over as they are ({type})" if type else f"weights are made of {name}"
