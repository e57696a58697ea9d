"""The level of a published GGUF file: the types of its tensors decide; its name only where it agrees with them.

Publishers make mixes with labels of their own (`UD-Q4_K_XL`, `Q6_K_L`). A user asks for such a file by its label, the
tag; its level is the nearest of our levels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from quant.levels.budget import is_budget
from quant.levels.recipes import LEVELS, assign, quantizable
from quant.plan import ModelPlan
from quant.types import QuantType

Types = Mapping[str, QuantType]

_LABEL = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:BF16|FP?16|FP?32|I?Q[1-8](?:_[A-Z0-9]+)*|TQ[12]_0|MXFP4(?:_MOE)?|NVFP4))(?=$|[-._/])",
    re.IGNORECASE,
)
_ALIASES = {"FP16": "F16", "FP32": "F32", "MXFP4": "MXFP4_MOE"}
# A publisher's own label: `UD-Q4_K_XL` is made after Q4_K.
_OWN = re.compile(r"(UD-)?(.*?)(_X*L)?")
# The bounds of a file's size, divided by the size at the level in its name; for our levels, and for publishers' labels.
_NEAR, _NEAR_OWN = (0.8, 1.25), (0.6, 1.7)


def label_in(name: str) -> str:
    """The label in the name of a file, in upper case: a level or a publisher's own mix; "" where there is none."""
    found = _LABEL.findall(name)
    label = found[-1].upper() if found else ""
    return _ALIASES.get(label, label)


class Recogniser:
    """Finds the levels of files that hold the tensors of `plan`, of whatever types."""

    def __init__(self, plan: ModelPlan) -> None:
        self._plan = plan
        self._matrices = [tensor for tensor in plan.tensors if quantizable(tensor)]
        self._assigned: dict[str, dict[str, QuantType]] = {}

    def types(self, level: str) -> dict[str, QuantType]:
        """The type of each tensor at a named level."""
        if level not in self._assigned:
            self._assigned[level] = assign(self._plan, level)
        return self._assigned[level]

    def recognise(self, types: Types, label: str, file_type: object = None) -> tuple[str, str]:
        """The level and the tag of a file, whose tensors have these `types`.

        `label` is from the file's name, `file_type` is the entry `general.file_type` of its header.
        """
        stated = next((level.name for level in LEVELS.values() if level.file_type == file_type), "")
        if label in LEVELS and self._agrees(types, label):
            return label, label
        level = stated if stated and not label and self._agrees(types, stated) else self._nearest(types)
        return level, label if label and label not in LEVELS and self._agrees(types, label) else level

    def made_here(self, types: Types, level: str) -> bool:
        """Whether `level`, the file's own entry for it, can be how these `types` were chosen: a recipe, or a budget."""
        return is_budget(level) or (level in LEVELS and dict(types) == self.types(level))

    def guess(self, size: int, label: str) -> str:
        """The level of a file whose header was not read, by its size in bytes and the label in its name."""
        names = _levels_for(label) or list(LEVELS)
        return min(names, key=lambda level: abs(self._bytes(self.types(level)) - size))

    def _nearest(self, types: Types) -> str:
        """The level that gives most weights the types that they have in the file; the nearest size where two do."""
        size = self._bytes(types)

        def nearness(level: str) -> tuple[int, int]:
            assigned = self.types(level)
            alike = sum(each.elements for each in self._matrices if types[each.name] is assigned[each.name])
            return alike, -abs(self._bytes(assigned) - size)

        return max(LEVELS, key=nearness)

    def _agrees(self, types: Types, label: str) -> bool:
        """Whether the label can be right: a level that it may mean has the file's main type, and nearly its size."""
        least, most = _NEAR if label in LEVELS else _NEAR_OWN
        counts: dict[QuantType, int] = {}
        for tensor in self._matrices:
            counts[types[tensor.name]] = counts.get(types[tensor.name], 0) + tensor.elements
        main = max(counts, key=lambda type: counts[type])
        for level in _levels_for(label):
            assigned = self.types(level)
            near = least <= self._bytes(types) / self._bytes(assigned) <= most
            if near and (label.startswith("UD-") or main in {assigned[each.name] for each in self._matrices}):
                return True
        return False

    def _bytes(self, types: Types) -> int:
        return sum(tensor.nbytes for tensor in self._plan.at(types))


def _levels_for(label: str) -> list[str]:
    """Our levels that a label may mean: `Q4_K_M` itself; Q4_K_M and Q4_K_S for `UD-Q4_K_XL`."""
    if label in LEVELS:
        return [label]
    own = _OWN.fullmatch(label)
    return [level for level in LEVELS if own and own[2] and f"{level}_".startswith(f"{own[2]}_")]
