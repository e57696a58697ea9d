"""A mixture with fewer experts: their matrices and their rows of the router are left out.

A GGUF file counts experts once for all layers, so every layer keeps the same number, each one its own. Experts to
which no token was routed go first, then experts that add little (`runtime/meter/routed.py`). A router that chooses
among groups of experts keeps its groups, of which each loses the same number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from quant.cuts.rows import rows_of
from quant.errors import UnsupportedModel
from quant.plan import ModelPlan, TensorPlan

# Tensors of a layer with a matrix, a row or a value for each expert.
_OF_EXPERTS = re.compile(
    r"blk\.\d+\.(ffn_(gate|up|down|gate_up)_exps\.(weight|bias|scale|input_scale)|ffn_gate_inp\.(weight|bias)"
    r"|exp_probs_b(_vl)?\.(weight|bias))"
)
# Other names of such tensors: matrices of one expert each in old files, tables from tokens to experts.
_STRANGE = re.compile(r"blk\.\d+\.(ffn_(gate|up|down)\.\d+\.|\w*tid2eid|\w*_chexps)")
# Architectures whose experts are not alone in what they add: they are weighed before they compute, or adjoined.
_OTHERWISE = ("llama4", "grovemoe", "deepseek4")


class Experts:
    """The experts of a plan: `count` of them, `used` for a token, in `groups`, in the layers `layers`."""

    def __init__(self, plan: ModelPlan) -> None:
        """Raises UnsupportedModel for a model without experts, and where its experts are not known well enough."""
        name, metadata = plan.architecture, plan.metadata
        self._key = f"{name}.expert_count"
        count, used = metadata.get(self._key), metadata.get(f"{name}.expert_used_count")
        self.layers = sorted({each.layer or 0 for each in plan.tensors if _stacked(each)})
        if not isinstance(count, int) or count < 2 or not used or not self.layers:
            raise UnsupportedModel("the model has no experts", "it works for mixtures of experts")
        strange = next((each.name for each in plan.tensors if _STRANGE.match(each.name)), None)
        if name in _OTHERWISE or strange:
            raise UnsupportedModel(
                f"experts of `{name}` are not dropped: " + (f"`{strange}` is not known" if strange else _WHY)
            )
        self.count = count
        self.used = max(used) if isinstance(used, list) else int(used)
        self.groups = int(metadata.get(f"{name}.expert_group_count") or 1)
        self._groups_used = int(metadata.get(f"{name}.expert_group_used_count") or self.groups)

    def kept_of(self, share: float) -> int:
        """How many experts a layer keeps of `share` of them. Raises UnsupportedModel where too few or all would stay.

        A token needs as many as it uses, from as few groups as the router may choose.
        """
        kept = round(share * self.count / self.groups) * self.groups
        least = max(-(-self.used // self._groups_used) * self.groups, 2 * self.groups if self.groups > 1 else 1)
        if kept < least:
            raise UnsupportedModel(
                f"{kept} of {self.count} experts are too few: a token uses {self.used}",
                f"keep at least {least}, a share of {least / self.count:.3g}",
            )
        if kept >= self.count:
            raise UnsupportedModel(f"all {self.count} experts would stay", "keep a smaller share")
        return kept

    def chosen(
        self, kept: int, scores: Mapping[int, Sequence[float]], counts: Mapping[int, Sequence[int]]
    ) -> dict[int, list[int]]:
        """The numbers of the `kept` experts that add most, sorted, by layer.

        scores, counts: by layer, one for each expert (`runtime/meter/routed.py`). Raises UnsupportedModel where nothing
        is known of a layer.
        """
        size = self.count // self.groups
        found: dict[int, list[int]] = {}
        for layer in self.layers:
            if len(scores.get(layer, ())) != self.count:
                raise UnsupportedModel(
                    f"nothing is known of the experts in layer {layer}: it was not computed",
                    "models with layers that guess further tokens keep their experts",
                )
            worth = [(counts[layer][each] > 0, scores[layer][each], -each) for each in range(self.count)]
            for first in range(0, self.count, size):
                best = sorted(range(first, first + size), key=lambda each: worth[each], reverse=True)
                found.setdefault(layer, []).extend(sorted(best[: kept // self.groups]))
        return found

    def idle(self, counts: Mapping[int, Sequence[int]]) -> int:
        """How many experts every layer, in each of its groups, can do without: no token was routed to them."""
        size = self.count // self.groups
        least = min(
            sum(not count for count in counts[layer][first : first + size])
            for layer in self.layers
            for first in range(0, self.count, size)
        )
        return least * self.groups

    def cut(self, plan: ModelPlan, kept: Mapping[int, Sequence[int]]) -> ModelPlan:
        """The plan with the experts `kept` alone, sorted numbers by layer. Raises UnsupportedModel.

        Refused are layers that lack a list or keep another number, and tensors that are not known.
        """
        sizes = {len(each) for each in kept.values()}
        if sorted(kept) != self.layers or len(sizes) != 1:
            raise UnsupportedModel("every layer with experts keeps the same number of them")
        if any(not 0 <= each < self.count for numbers in kept.values() for each in numbers):
            raise UnsupportedModel(f"experts are numbered from 0 to {self.count - 1}")
        tensors = tuple(self._cut(each, kept) for each in plan.tensors)
        metadata: dict[str, Any] = {**plan.metadata, self._key: sizes.pop()}
        return replace(plan, tensors=tensors, metadata=metadata)

    def _cut(self, tensor: TensorPlan, kept: Mapping[int, Sequence[int]]) -> TensorPlan:
        numbers = kept.get(-1 if tensor.layer is None else tensor.layer)
        if numbers is None:
            return tensor
        if not _OF_EXPERTS.fullmatch(tensor.name):
            if "exp" in tensor.name and "shexp" not in tensor.name and tensor.shape[0] == self.count:
                raise UnsupportedModel(f"`{tensor.name}` may belong to the experts, and is not known")
            return tensor
        if tensor.shape[0] != self.count:
            raise UnsupportedModel(f"`{tensor.name}` has {tensor.shape[0]} parts, and there are {self.count} experts")
        return rows_of(tensor, numbers)


_WHY = "they are weighed before they compute, or belong to one another"


def _stacked(tensor: TensorPlan) -> bool:
    return tensor.role == "ffn_down" and len(tensor.shape) == 3
