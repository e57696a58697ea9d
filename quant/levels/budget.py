"""Budgets, such as `4GB` and `4.5bpw`: the best mix of types within a number of bytes, or of bits per weight.

The harm of a type to a tensor is the divergence of the model's output that it is expected to cause, as it was measured
on this very model (`quant/levels/harms.py`); harms add up. A named level is then a budget as well: the bytes of its own
types.

Where nothing was measured, the distortion of a tensor by a type is the squared error on normally distributed weights,
relative to the sum of their squares, measured with our kernels. The harm to the model is assumed to be proportional to
it, to the tensor's size, and to a factor of its role. The first is a theorem (Malinovskii et al., "Pushing the Limits
of Large Language Model Quantization via the Linearity Theorem", 2024). Values and down projections count more, as in
llama.cpp's own mixes.

The mix is a greedy knapsack. Each tensor begins with its smallest type. Its larger types that lie on the convex hull
of (bytes, harm) are its upgrades, in order; the `gain` of an upgrade is the harm avoided for each byte. The upgrade
with the largest gain is made again and again, until none fits.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

from quant.errors import UnknownLevel
from quant.gguf.header import DEFAULT_ALIGNMENT, align
from quant.gguf.writer import encode_header, layout
from quant.levels.harms import MeasuredHarms
from quant.levels.recipes import LEVELS, assign, describe, level_of, or_published, quantizable, type_for_rows
from quant.plan import ModelPlan, TensorPlan
from quant.types import QuantType as T

_BUDGET = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,4})?)(KB|MB|GB|TB|KiB|MiB|GiB|TiB|bpw)", re.IGNORECASE)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}
# Bytes reserved for the header's entries that the plan does not have yet: source, digests, level, version.
_ENTRIES = 16 << 10
# The part of a budget that may stay unused.
_UNUSED = 0.02
# Relative squared errors of the types of a mix, in the order of `_LADDER`, then of the types for special cases.
ERRORS = {
    T.Q2_K: 7.5e-2,
    T.Q3_K: 2.11e-2,
    T.Q4_K: 4.96e-3,
    T.Q5_K: 1.20e-3,
    T.Q6_K: 2.72e-4,
    T.Q8_0: 2.87e-5,
    T.F16: 4.3e-8,
    # Only for weights that the makers published in it.
    T.MXFP4: 0.0,
    # For rows that are not made of whole blocks of 256.
    T.Q4_0: 6.6e-3,
    T.Q5_0: 1.61e-3,
    T.Q5_1: 1.11e-3,
}
_LADDER = (T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K, T.Q8_0, T.F16)
# The types whose harms are measured, and the bases of named levels that are a number of bytes then.
_MEASURED = (T.Q2_K, T.Q3_K, T.IQ4_XS, T.Q4_K, T.Q5_K, T.Q6_K, T.Q8_0, T.F16)
_BASES = (T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K)
# Factor of a role; 1 for all others.
_ROLES = {"attn_v": 4.0, "attn_kv_b": 4.0, "attn_k": 2.0, "attn_output": 1.5, "ffn_down": 2.0, "output": 2.0}
# Factor of an embedding that is not the output matrix as well: a token reads one row of it.
_LOOKED_UP = 0.5


@dataclass(frozen=True, slots=True)
class Upgrade:
    """The next better type of a tensor: `cost` more bytes than the type before; `gain` is the harm avoided per byte."""

    type: T
    cost: int
    gain: float


Upgrades = Mapping[str, list[Upgrade]]
"""The upgrades of each tensor, by its name, in the order in which they are made."""


def is_budget(level: str) -> bool:
    """Whether `level` is a budget such as `4GB` or `4.5bpw`, and not a named level."""
    return _BUDGET.fullmatch(level) is not None


def is_mixed(level: str) -> bool:
    """Whether a mix is made for `level` where harms were measured: for a budget, and for levels of K types."""
    return is_budget(level) or level_of(level).base in _BASES


def candidates(columns: int) -> tuple[T, ...]:
    """The types whose harms are measured for a matrix of `columns` columns."""
    return tuple(dict.fromkeys(type_for_rows(type, columns) for type in _MEASURED))


def limit(plan: ModelPlan, level: str) -> int:
    """Bytes that the tensors of `plan` may take at `level`.

    A budget in bytes is for the whole file, so the header is subtracted; one in bits per weight is for the weights. A
    named level is the bytes of its own types. Raises UnknownLevel when `level` is neither.
    """
    found = _BUDGET.fullmatch(level)
    if found is None:
        types = assign(plan, level)
        return sum(_bytes(tensor, types[tensor.name]) for tensor in plan.tensors)
    amount, unit = float(found[1]), found[2].lower()
    if unit == "bpw":
        return int(amount / 8 * sum(tensor.elements for tensor in plan.tensors))
    size = amount * (1024 if "i" in unit else 1000) ** _POWERS[unit[0]]
    tensors = layout(tensor.at(T.F32) for tensor in plan.tensors)
    return int(size) - len(encode_header(plan.metadata, tensors)) - _ENTRIES


def mix(plan: ModelPlan, level: str, measured: MeasuredHarms | None = None) -> dict[str, T]:
    """The type of every tensor of `plan` within the bytes of `level`.

    Raises UnknownLevel when not even the smallest types fit, and when the best types use less than 98 % of the budget.
    """
    whole = room = limit(plan, level)
    least: dict[str, T] = {}
    upgrades: dict[str, list[Upgrade]] = {}
    harms = _Harms(plan, measured)
    for tensor in plan.tensors:
        least[tensor.name], upgrades[tensor.name] = _choices(tensor, harms)
        room -= _bytes(tensor, least[tensor.name])
    if room < 0:
        raise UnknownLevel(
            f"`{level}` is too little: the least is {(whole - room) / 1e6:,.1f} MB of weights", "give more"
        )
    counts = dict.fromkeys(upgrades, 0)
    room = _climb(upgrades, counts, room)
    if room > _UNUSED * whole:
        if all(counts[name] == len(upgrades[name]) for name in upgrades):
            most = f"the most is {(whole - room) / 1e6:,.1f} MB of weights"
            raise UnknownLevel(f"`{level}` is more than this model can use: {most}", "give less, or name F16")
        counts = _exchange(upgrades, counts, room, int(_UNUSED * whole))
    return {name: upgrades[name][count - 1].type if count else least[name] for name, count in counts.items()}


def _climb(upgrades: Upgrades, counts: dict[str, int], room: int) -> int:
    """Make the upgrade with the largest gain, again and again, while one fits into `room` bytes.

    `counts`, the number of upgrades that each tensor has had, is changed. Returns the bytes left.
    """
    heap = [(-ahead[counts[name]].gain, name) for name, ahead in upgrades.items() if counts[name] < len(ahead)]
    heapq.heapify(heap)
    while heap:
        _, name = heapq.heappop(heap)
        cost = upgrades[name][counts[name]].cost
        if cost > room:
            continue  # smaller tensors may still have room to gain
        room -= cost
        counts[name] += 1
        if counts[name] < len(upgrades[name]):
            heapq.heappush(heap, (-upgrades[name][counts[name]].gain, name))
    return room


def _exchange(upgrades: Upgrades, counts: dict[str, int], room: int, unused: int) -> dict[str, int]:
    """The counts of a mix that leaves no more than `unused` bytes; `counts` itself where there is none.

    For a budget of which much stays unused, because the next upgrade of each large tensor does not fit. One of these
    tensors gets its upgrade all the same, and the upgrades with the least gain are undone until it fits. Then `_climb`
    uses the bytes that are left. The tensors are tried in turn, the one with the largest gain first.
    """
    blocked = [name for name in upgrades if counts[name] < len(upgrades[name])]
    for name in sorted(blocked, key=lambda name: -upgrades[name][counts[name]].gain):
        trial, left = dict(counts), room - upgrades[name][counts[name]].cost
        trial[name] += 1
        others = [(upgrades[each][count - 1].gain, each) for each, count in counts.items() if count and each != name]
        heapq.heapify(others)
        while left < 0 and others:
            _, other = heapq.heappop(others)
            trial[other] -= 1
            left += upgrades[other][trial[other]].cost
            if trial[other]:
                heapq.heappush(others, (upgrades[other][trial[other] - 1].gain, other))
        if left >= 0 and _climb(upgrades, trial, left) <= unused:
            return trial
    return counts


class Assignment(NamedTuple):
    """The type of every tensor, by its name, and a clause that says why; "" where the level alone says it."""

    types: dict[str, T]
    reason: str = ""


def types_of(plan: ModelPlan, level: str) -> dict[str, T]:
    """The type of every tensor at a named level, or within a budget; raises UnknownLevel."""
    return mix(plan, level) if is_budget(level) else assign(plan, level)


def assignment(plan: ModelPlan, level: str, measured: MeasuredHarms | None) -> Assignment:
    """The types at a named level or within a budget, by measured harms where there are any; raises UnknownLevel.

    A level of K types (`is_mixed`) is the mix of the same bytes then, with the least expected divergence.
    """
    if measured is None or not is_mixed(level):
        return Assignment(types_of(plan, level))
    if not measured.expected:
        return Assignment(types_of(plan, level), f"types as for any model: {measured.missing}")
    if measured.slowness:
        try:
            return _mixed(plan, level, measured)
        except UnknownLevel:  # too few bytes for types that are read quickly
            measured = replace(measured, slowness={})
    return _mixed(plan, level, measured)


def _mixed(plan: ModelPlan, level: str, measured: MeasuredHarms) -> Assignment:
    """The mix in the bytes of a budget, or of a named level. Raises UnknownLevel."""
    if is_budget(level):
        types = mix(plan, level, measured)
        expected = _Harms(plan, measured).total(types, plan)
        return Assignment(types, f"{_how(measured)}: KL {expected:.4f} expected")
    return _at_the_size_of(plan, level, measured)


def _at_the_size_of(plan: ModelPlan, level: str, measured: MeasuredHarms) -> Assignment:
    """The mix in the bytes of a named level, unless the level's own types are expected to be no worse."""
    own, harms = assign(plan, level), _Harms(plan, measured)
    before = harms.total(own, plan)
    try:
        types = mix(plan, level, measured)
    except UnknownLevel:
        if measured.slowness:
            raise
        types = own  # the model is too small for another mix of nearly the same bytes
    after = harms.total(types, plan)
    if after >= before and not measured.slowness:
        return Assignment(own, f"the level's own types, as none are better by measured sensitivity: KL {before:.4f}")
    return Assignment(types, f"{_how(measured)}: KL {after:.4f} expected, {before:.4f} with the level's own types")


def _how(measured: MeasuredHarms) -> str:
    """The beginning of the reason for a mix."""
    speed = " and by the speed at which they are read here" if measured.slowness else ""
    return f"types by measured sensitivity{speed}"


def entries_of(level: str, types: Mapping[str, T]) -> dict[str, Any]:
    """The GGUF entries that name the level. `types` is the mix of a budget.

    GGUF has no number for a mix. The first level whose base is the mix's commonest type lends its number.
    """
    if not is_budget(level):
        return describe(level)
    counts: dict[T, int] = {}
    for type in types.values():
        if type is not T.F32:
            counts[type] = counts.get(type, 0) + 1
    commonest = max(counts, key=lambda type: counts[type], default=T.F32)
    numbers = [each.file_type for each in LEVELS.values() if each.base is commonest]
    return {"general.file_type": numbers[0] if numbers else 0, "general.quantization_version": 2}


class _Harms:
    """The harm of each type to each tensor: as measured, else as typical, in the measured ones' unit."""

    def __init__(self, plan: ModelPlan, measured: MeasuredHarms | None) -> None:
        self._measured = measured.expected if measured else {}
        self._slowness = measured.slowness if measured else {}
        self.speed_counts = bool(self._slowness)
        self._tied, self._unit = plan.tied, 1.0
        known = [tensor for tensor in plan.tensors if tensor.name in self._measured]
        middle = [(self._measured[each.name], each, type_for_rows(T.Q4_K, each.columns)) for each in known]
        typical = sum(sensitivity(each, self._tied) * ERRORS[type] for harms, each, type in middle if type in harms)
        if typical:
            self._unit = sum(harms[type] for harms, _, type in middle if type in harms) / typical

    def types(self, tensor: TensorPlan) -> list[T]:
        """The types that a tensor may have, the smallest first."""
        if not quantizable(tensor):
            return [T.F32]
        ladder = _MEASURED if tensor.name in self._measured else _LADDER
        return sorted({or_published(type_for_rows(type, tensor.columns), tensor) for type in ladder}, key=_bits)

    def of(self, tensor: TensorPlan, type: T) -> float:
        """The harm of a type to a tensor."""
        if type in (T.F32, tensor.published_type):
            return 0.0
        measured = self._measured.get(tensor.name, {})
        return measured[type] if type in measured else self._unit * sensitivity(tensor, self._tied) * ERRORS[type]

    def cost(self, tensor: TensorPlan, type: T) -> float:
        """By this the harm that a type avoids is divided: its bytes, or the time in which they are read."""
        return _bytes(tensor, type) * self._slowness.get(type, 1.0)

    def total(self, types: Mapping[str, T], plan: ModelPlan) -> float:
        """The harm of all types together."""
        return sum(self.of(tensor, types[tensor.name]) for tensor in plan.tensors if quantizable(tensor))


class _Point(NamedTuple):
    """A type of a tensor: its cost, the harm, and the bytes, which are the cost unless speed counts."""

    cost: float
    harm: float
    bytes: int
    type: T


def _choices(tensor: TensorPlan, harms: _Harms) -> tuple[T, list[Upgrade]]:
    """The cheapest type of a tensor, and its upgrades, each with less gain than the one before."""
    points = [
        _Point(harms.cost(tensor, type), harms.of(tensor, type), _bytes(tensor, type), type)
        for type in harms.types(tensor)
    ]
    points.sort(key=lambda point: point.cost)
    hull = points[:1]
    for point in points[1:]:
        if harms.speed_counts and point.harm >= hull[-1].harm:
            continue  # a small type that is read slowly
        while len(hull) > 1 and _slope(hull[-1], point) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    upgrades = [
        Upgrade(after.type, after.bytes - before.bytes, _slope(before, after)) for before, after in pairwise(hull)
    ]
    return hull[0].type, upgrades


def _bits(type: T) -> float:
    return type.bits_per_weight


def _slope(before: _Point, after: _Point) -> float:
    """The harm that `after` avoids for the cost that it has more than `before`."""
    return (before.harm - after.harm) / max(1.0, after.cost - before.cost)


def sensitivity(tensor: TensorPlan, tied: bool) -> float:
    """How much a tensor's distortion harms the model: its elements times the factor of its role."""
    if tensor.role == "token_embd":
        return tensor.elements * (_ROLES["output"] if tied else _LOOKED_UP)
    return tensor.elements * _ROLES.get(tensor.role, 1.0)


def _bytes(tensor: TensorPlan, type: T) -> int:
    return align(tensor.at(type).nbytes, DEFAULT_ALIGNMENT)
