"""Adapters of fused experts (`target_parameters` of PEFT): one A and one B for all experts of a layer.

A has the rows of every expert's own A, expert after expert. B has the columns of every expert's own B, rank after rank:
column r·experts + e is column r of expert e. Gate and up are one parameter, gate first. Two parameters of one module
are wrapped one within the other (`base_layer`), and told apart by their shapes. Source: `ParamWrapper` in
`tuners/lora/layer.py` of PEFT, and the experts of transformers 5.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from quant.convert.adapters.pairs import Pair
from quant.convert.base import Known, Sizes
from quant.convert.placing import Wanted

_EXPERTS = re.compile(r"(?P<module>(?:.+\.)?layers\.(?P<layer>\d{1,4})\..*\bexperts)(?:\.base_layer)*")
# The parameters of a module of experts, and the tensors of GGUF that hold its parts.
_PARAMETERS = {
    "gate_up_proj": ("ffn_gate_exps.weight", "ffn_up_exps.weight"),
    "down_proj": ("ffn_down_exps.weight",),
}


@dataclass(frozen=True, slots=True)
class ExpertsUp:
    """Rows `first` to `first + count` of each expert's own B, from the B of all, (outputs, rank · experts)."""

    outputs: int
    rank: int
    experts: int
    first: int
    count: int
    rows: int = 0

    def apply(self, x: np.ndarray) -> np.ndarray:
        """(experts * count, rank), of [1, values]."""
        apart = x.reshape(self.outputs, self.rank, self.experts)[self.first : self.first + self.count]
        return np.ascontiguousarray(apart.transpose(2, 0, 1)).reshape(-1, self.rank)


@dataclass(frozen=True)
class FusedExperts:
    """The change of one parameter of a layer's experts: the name of the parameter, its rank, the tensors it changes."""

    parameter: str
    pair: Pair
    rank: int
    experts: int
    targets: tuple[str, ...]

    def ups(self) -> Iterator[tuple[str, ExpertsUp]]:
        """The tensors that change, each with the transform that takes its part of B."""
        outputs = self.pair.up.shape[0]
        count = outputs // len(self.targets)
        for number, target in enumerate(self.targets):
            yield target, ExpertsUp(outputs, self.rank, self.experts, number * count, count)


def is_experts(module: str) -> bool:
    """Whether a module is one of fused experts."""
    return bool(_EXPERTS.fullmatch(module))


def fused_experts(pair: Pair, wanted: dict[str, Wanted], sizes: Sizes) -> FusedExperts | None:
    """The parameter that a pair changes; None where it changes no experts that GGUF has stacked one by one."""
    found = _EXPERTS.fullmatch(pair.module)
    if found is None:
        return None
    layer = int(found["layer"])
    rows = {row.target.format(layer): row for row, at in wanted.values() if row.stacked and at == layer}
    for name, ends in _PARAMETERS.items():
        places = tuple(f"blk.{layer}.{end}" for end in ends)
        if all(place in rows for place in places) and _fits(pair, [rows[place] for place in places], sizes):
            experts = sizes.length(rows[places[0]].stack)
            return FusedExperts(f"{found['module']}.{name}", pair, pair.rank // experts, experts, places)
    return None


def _fits(pair: Pair, rows: list[Known], sizes: Sizes) -> bool:
    """Whether A and B have the shapes of a parameter whose matrices are these rows."""
    experts, (outputs, inputs) = sizes.length(rows[0].stack), sizes.shape(rows[0].shape)
    plain = not any(target.transform for row in rows for target in row.targets)
    return (
        plain and pair.rank % experts == 0 and (pair.up.shape[0], pair.down.shape[1]) == (len(rows) * outputs, inputs)
    )
