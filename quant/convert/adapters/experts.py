"""Adapters of fused experts (`target_parameters` of PEFT): one A and one B for all experts of a layer.

A has the rows of every expert's own A, expert after expert. B has the columns of every expert's own B, rank after rank:
column r·experts + e is column r of expert e. Gate and up are one parameter, gate first, or in alternate outputs. Two
parameters of one module are wrapped one within the other (`base_layer`), and told apart by their shapes.

PEFT has to guess which side of a parameter is its input. Where it guesses wrong, A belongs to the outputs and B to the
inputs: the change of a weight W, (outputs, inputs), is then (B·A)ᵀ. That shows in the shapes, too. Sources:
`ParamWrapper` in `tuners/lora/layer.py` of PEFT, and the experts of transformers 5.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from quant.convert.adapters.pairs import Pair
from quant.convert.base import Known, Sizes, Target
from quant.convert.placing import Wanted
from quant.convert.transforms import EverySecondRow, TakeTransposed, Transpose
from quant.errors import UnsupportedModel
from quant.plan import Transform

_EXPERTS = re.compile(r"(?P<module>(?:.+\.)?layers\.(?P<layer>\d{1,4})\..*\bexperts)(?:\.base_layer)*")
# The parameters of a module of experts, and the tensors of GGUF that hold its parts.
_PARAMETERS = {
    "gate_up_proj": ("ffn_gate_exps.weight", "ffn_up_exps.weight"),
    "down_proj": ("ffn_down_exps.weight",),
}


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of a parameter that become the rows of one tensor: `count` from `first` on, `step` apart."""

    first: int
    count: int
    step: int = 1

    @property
    def places(self) -> slice:
        """Them in an array of all outputs."""
        return slice(self.first, self.first + self.step * self.count, self.step)


@dataclass(frozen=True, slots=True)
class ExpertsUp:
    """The rows `taken` of each expert's own B, from the B of all, (outputs, rank · experts)."""

    outputs: int
    rank: int
    experts: int
    taken: Outputs
    rows: int = 0

    def apply(self, x: np.ndarray) -> np.ndarray:
        """(experts * count, rank), of [1, values]."""
        apart = x.reshape(self.outputs, self.rank, self.experts)[self.taken.places]
        return np.ascontiguousarray(apart.transpose(2, 0, 1)).reshape(-1, self.rank)


@dataclass(frozen=True, slots=True)
class ExpertsAcross:
    """The B of all, (inputs, rank · experts), as the A of each expert where PEFT took the inputs for outputs."""

    inputs: int
    rank: int
    experts: int
    rows: int = 0

    def apply(self, x: np.ndarray) -> np.ndarray:
        """(experts * rank, inputs), of [1, values]."""
        apart = x.reshape(self.inputs, self.rank, self.experts)
        return np.ascontiguousarray(apart.transpose(2, 1, 0)).reshape(-1, self.inputs)


@dataclass(frozen=True, slots=True)
class ExpertsBack:
    """The A of all, (experts · rank, outputs), as the rows `taken` of each expert's B."""

    outputs: int
    rank: int
    experts: int
    taken: Outputs
    rows: int = 0

    def apply(self, x: np.ndarray) -> np.ndarray:
        """(experts * count, rank), of [1, values]."""
        apart = x.reshape(self.experts, self.rank, self.outputs)[:, :, self.taken.places]
        return np.ascontiguousarray(apart.transpose(0, 2, 1)).reshape(-1, self.rank)


@dataclass(frozen=True)
class _Parameter:
    """A parameter of a layer's experts as its base has it: its tensors of GGUF, and their outputs of it.

    `transposed` where the base stores it as (experts, inputs, outputs).
    """

    name: str
    experts: int
    inputs: int
    targets: tuple[tuple[str, Outputs], ...]
    transposed: bool

    @property
    def outputs(self) -> int:
        """All outputs of one expert."""
        return sum(taken.count for _, taken in self.targets)

    def ways(self, pair: Pair) -> list[bool]:
        """The ways in which a pair may change it: False with A at its inputs, True with A at its outputs."""
        shape = pair.up.shape[0], pair.down.shape[1]
        sides = {False: (self.outputs, self.inputs), True: (self.inputs, self.outputs)}
        return [way for way, side in sides.items() if side == shape] if pair.rank % self.experts == 0 else []


@dataclass(frozen=True)
class FusedExperts:
    """The change of one parameter of a layer's experts: the name of the parameter, its rank, the tensors it changes."""

    parameter: str
    pair: Pair
    rank: int
    experts: int
    inputs: int
    targets: tuple[tuple[str, Outputs], ...]
    across: bool
    """Whether A is at the outputs."""

    def matrices(self, taken: Outputs) -> tuple[Transform | None, Transform]:
        """The transforms that make A and B of a tensor: of the pair's A and B, or of its B and A where `across`."""
        outputs = sum(each.count for _, each in self.targets)
        if self.across:
            across = ExpertsAcross(self.inputs, self.rank, self.experts)
            return across, ExpertsBack(outputs, self.rank, self.experts, taken)
        return None, ExpertsUp(outputs, self.rank, self.experts, taken)


def is_experts(module: str) -> bool:
    """Whether a module is one of fused experts."""
    return bool(_EXPERTS.fullmatch(module))


def fused_experts(pairs: Iterable[Pair], wanted: dict[str, Wanted], sizes: Sizes) -> list[FusedExperts]:
    """The changes of fused experts among the pairs. Raises UnsupportedModel for one whose sides cannot be told apart.

    They cannot where a parameter is square, unless the others of the adapter tell.
    """
    found = [(pair, each, each.ways(pair)) for pair in pairs for each in _parameters(pair, wanted, sizes)]
    told = {ways[0] for _, each, ways in found if len(ways) == 1 and each.transposed}
    fused = []
    for pair, each, ways in found:
        if not ways:
            continue
        if len(ways) > 1 and each.transposed and len(told) != 1:
            raise UnsupportedModel(
                f"the adapter changes `{each.name[-80:]}` alone, whose inputs and outputs are alike, so that nothing "
                "tells which of its matrices comes first",
                "merge the adapter into its base instead",
            )
        way = ways[0] if len(ways) == 1 else each.transposed and True in told
        rank = pair.rank // each.experts
        fused.append(FusedExperts(each.name, pair, rank, each.experts, each.inputs, each.targets, way))
    return fused


def _parameters(pair: Pair, wanted: dict[str, Wanted], sizes: Sizes) -> Iterator[_Parameter]:
    """The parameters of the module that a pair changes, as far as GGUF has them as stacks of matrices."""
    found = _EXPERTS.fullmatch(pair.module)
    if found is None:
        return
    layer = int(found["layer"])
    sizes = sizes.at(layer)
    rows: dict[str, tuple[Known, Target]] = {}
    for row, at in wanted.values():
        for target in row.targets if at == layer else ():
            rows.setdefault(target.name.format(layer), (row, target))
    for name, ends in _PARAMETERS.items():
        places = [f"blk.{layer}.{end}" for end in ends]
        taken = [_outputs(*rows[place], number, sizes) for number, place in enumerate(places) if place in rows]
        inputs = {each[1] for each in taken if each}
        if len(taken) == len(places) and all(taken) and len(inputs) == 1:
            targets = tuple((place, each[0]) for place, each in zip(places, taken, strict=True) if each)
            row, target = rows[places[0]]
            experts = sizes.length(row.stack if row.stacked else row.shape[0])
            turned = isinstance(_transform(target, sizes), Transpose | TakeTransposed | EverySecondRow)
            yield _Parameter(f"{found['module']}.{name}", experts, inputs.pop(), targets, turned)


def _outputs(row: Known, target: Target, number: int, sizes: Sizes) -> tuple[Outputs, int] | None:
    """The outputs of a parameter that a tensor has, and the inputs; None where no rows of a matrix are they.

    `number` is the tensor's place among the parameter's.
    """
    shape, transform, parts = sizes.shape(row.shape), _transform(target, sizes), len(row.targets)
    if row.stacked:
        return None if transform or len(shape) != 2 else (Outputs(number * shape[0], shape[0]), shape[1])
    if len(shape) != 3:
        return None
    match transform:
        case None:
            return Outputs(number * shape[1] // parts, shape[1] // parts), shape[2]
        case EverySecondRow(first):
            return Outputs(first, shape[1] // 2, 2), shape[2]
        case TakeTransposed(inputs, count, first, step):
            return Outputs(first, count, step), inputs
        case Transpose(outputs, inputs):
            return Outputs(0, outputs), inputs
    return None


def _transform(target: Target, sizes: Sizes) -> Transform | None:
    return target.transform(sizes) if target.transform else None
