"""Which level of a model this machine should hold: one way for `lm pull` and `lm fit`, so that they always agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from quant.gguf.header import Header
from quant.levels import budget, recipes
from quant.plan import AHEAD, ModelPlan, Part, TensorPlan
from quant.types import QuantType
from runtime.machine import inspection as measure
from runtime.machine import rates
from runtime.machine.advise import Candidate, Choice, Option, Wish, choose, size, weigh
from runtime.machine.devices import Layers
from runtime.machine.fit import Shape
from runtime.machine.hardware import Hardware, detect, usable_cpus

KV_TYPE = "F16"
# Below this level a model loses too much unless it is known which of its weights matter.
COARSEST = "Q3_K_M"
# Models of which a token reads less are fast enough at any level on any machine, so nothing need be measured.
SMALL_BYTES = 200_000_000


@dataclass(frozen=True)
class Advice:
    """The choice, and every level that was weighed, from the largest to the smallest."""

    choice: Choice
    options: list[Option]
    shape: Shape


@dataclass(frozen=True)
class Machine:
    """This machine, the folder that keeps what is known of its speed, and who hears that it is being measured."""

    hardware: Hardware
    cache: Path
    notice: Callable[[str], None] = lambda text: None


def look(cache: Path, notice: Callable[[str], None] = lambda text: None) -> Machine:
    """This machine, its memory's bandwidth from the cache where that is known."""
    return Machine(detect(rates.bandwidth(cache, usable_cpus())), cache, notice)


class Chooser:
    """Weighs levels of one model for a machine."""

    def __init__(self, plan: ModelPlan, machine: Machine) -> None:
        self._plan = plan
        self._machine = machine
        self._hardware = machine.hardware

    def choose(self, wish: Wish, disk_free: int | None = None) -> Choice:
        """The level by the rule, or the one that was asked for; raises DoesNotFit, UnknownLevel."""
        levels = [name for name in _levels(wish) if name in recipes.LADDER or name == wish.forced]
        shape, hardware, candidates = self._prepare(levels, wish, judged=wish.forced is None)
        return self._said(choose(candidates, shape, hardware, wish, disk_free))

    def advise(self, wish: Wish, disk_free: int | None = None) -> Advice:
        """As `choose`, and what speaks for and against every level there is; of a quantized file that is its own."""
        if self._plan.level:
            return self._as_it_is(wish, disk_free)
        shape, hardware, candidates = self._prepare(_levels(wish), wish)
        options = weigh(candidates, shape, hardware, wish, disk_free)
        return Advice(self._said(choose(candidates, shape, hardware, wish, disk_free)), options, shape)

    def _said(self, choice: Choice) -> Choice:
        """The choice with what of the source stays behind, and what it has small already, if anything."""
        clauses, left = [choice.reason], self._plan.left_out
        if left:
            kind = "" if left.keys() == {AHEAD} else "text only: "
            clauses.append(f"{kind}{' and '.join(left)} ({size(sum(left.values()))}) left out")
        small = [tensor for tensor in self._plan.tensors if tensor.scales]
        types = budget.types_of(self._plan, choice.level) if small else {}
        if kept := {types[tensor.name].name for tensor in small} & {tensor.dtype for tensor in small}:
            clauses.append(f"experts stay {kept.pop()}, as they are published")
        return replace(choice, reason="; ".join(clauses))

    def among(self, candidates: Sequence[Candidate], wish: Wish, disk_free: int | None = None) -> Advice:
        """As `advise`, of files that others have made, from the largest to the smallest."""
        shape = self._weighed(Shape.of(self._plan.metadata), wish)
        large = max(sum(each.reads.weights.values()) for each in candidates if each.reads) > SMALL_BYTES
        hardware = self._with_rates(large)
        options = weigh(candidates, shape, hardware, wish, disk_free)
        return Advice(choose(candidates, shape, hardware, wish, disk_free), options, shape)

    def _as_it_is(self, wish: Wish, disk_free: int | None) -> Advice:
        plan, shape = self._plan, Shape.of(self._plan.metadata)
        shape = self._weighed(shape, wish)
        types = {tensor.name: QuantType.by_name(tensor.dtype) for tensor in plan.tensors}
        size = sum(tensor.size for tensor in plan.tensors)
        only = [Candidate(plan.level, size, reads=reads(plan, types, shape), layers=_layers(plan, types))]
        options = weigh(only, shape, self._hardware, wish, disk_free)
        choice = choose(only, shape, self._hardware, replace(wish, forced=plan.level), disk_free)
        return Advice(replace(choice, reason=as_it_is(plan.level)), options, shape)

    def _prepare(
        self, levels: Iterable[str], wish: Wish, judged: bool = True
    ) -> tuple[Shape, Hardware, list[Candidate]]:
        shape = Shape.of(self._plan.metadata)
        with ThreadPoolExecutor(1) as aside:  # llama.cpp is asked in another process
            weighed = aside.submit(self._weighed, shape, wish)
            candidates = [candidate(self._plan, name, shape, forced=name == wish.forced) for name in levels]
            shape = weighed.result()
        large = max(sum(each.reads.weights.values()) for each in candidates if each.reads) > SMALL_BYTES
        return shape, self._with_rates(large and judged), candidates

    def _with_rates(self, large: bool) -> Hardware:
        """The machine with what is known of its speed, measured now if that matters."""
        hardware, cache, known = self._hardware, self._machine.cache, {}
        for card in ("", *(card.name for card in hardware.cards[:1])):
            if large and rates.stale(cache, hardware.cpus, card):
                self._machine.notice(
                    f"measuring how fast {card or 'this machine'} reads weights; takes about 10 s, once"
                )
                rates.measure(cache, hardware.cpus, card)
            known[card] = rates.load(cache, hardware.cpus, card)
        return replace(hardware, rates=known.pop(""), card_rates=next(iter(known.values()), None))

    def _weighed(self, shape: Shape, wish: Wish) -> Shape:
        types = recipes.assign(self._plan, recipes.LADDER[0])
        tensors = [(tensor.name, tensor.shape[::-1], types[tensor.name]) for tensor in self._plan.tensors]
        if not shape.vocabulary:
            rows = [shape[-1] for name, shape, _ in tensors if name == "token_embd.weight"]
            shape = replace(shape, vocabulary=sum(rows))
        weighed = measure.weigh(
            self._plan.metadata, tensors, shape.pool(wish.context), wish.sequences, wish.kv_type.upper()
        )
        return replace(shape, weighed=weighed)


def as_it_is(level: str) -> str:
    """The reason for a level that nobody chose."""
    return f"{level}: the file is quantized already and is taken as it is"


def candidate(plan: ModelPlan, level: str, shape: Shape, forced: bool = False) -> Candidate:
    """What `level` would make of the model."""
    listed = forced or level in recipes.LADDER
    return candidate_of(plan, level, budget.types_of(plan, level), shape, worthwhile(level), listed)


def candidate_of(
    plan: ModelPlan, name: str, types: Mapping[str, QuantType], shape: Shape, worthwhile: bool, listed: bool
) -> Candidate:
    """The model with these types."""
    weights = sum(types[each.name].row_bytes(each.columns) * each.elements // each.columns for each in plan.tensors)
    return Candidate(name, weights, worthwhile, reads(plan, types, shape), listed, layers=_layers(plan, types))


def worthwhile(level: str) -> bool:
    """Whether a level is good enough without importance data."""
    return level not in recipes.LEVELS or recipes.LEVELS[level].bits >= recipes.LEVELS[COARSEST].bits


def _layers(plan: ModelPlan, types: Mapping[str, QuantType]) -> Layers:
    return Layers.of([(tensor.name, tensor.shape[::-1], types[tensor.name]) for tensor in plan.tensors])


def reads(plan: ModelPlan, types: Mapping[str, QuantType], shape: Shape) -> rates.Reads:
    """What a token's step reads: every matrix once, of experts those that answer, of an embedding one row."""
    architecture = plan.architecture
    experts = plan.metadata.get(f"{architecture}.expert_count", 0)
    share = plan.metadata.get(f"{architecture}.expert_used_count", 0) / experts if experts else 1.0
    tied = all(tensor.name != "output.weight" for tensor in plan.tensors)
    weights: dict[str, int] = {}
    for tensor in plan.tensors:
        if tensor.name == "token_embd.weight" and not tied:
            continue
        type = types[tensor.name]
        size = type.row_bytes(tensor.columns) * (tensor.elements // tensor.columns)
        weights[type.name] = weights.get(type.name, 0) + round(size * (share if "_exps." in tensor.name else 1.0))
    return rates.Reads(weights, shape.layers, shape.attention_heads, 2 * shape.row_values)


def plan_of(header: Header) -> ModelPlan:
    """A model that is quantized already as if it were to be made: the same tensors, whatever their types."""
    metadata = header.metadata
    # At any other level such weights are as their authors published them, and stay so at the next.
    own = metadata.get("general.file_type") != recipes.LEVELS["MXFP4_MOE"].file_type
    scales = {QuantType.MXFP4: (Part("", 0, 0),)} if own else {}
    tensors = tuple(
        TensorPlan(each.name, each.shape[::-1], each.type.name, size=each.nbytes, scales=scales.get(each.type, ()))
        for each in header.tensors
    )
    return ModelPlan(str(metadata.get("general.architecture", "")), metadata, tensors, ())


def canonical(level: str | None) -> str | None:
    """The level that a name asks for, a named one or a budget; None for the best. Raises UnknownLevel."""
    if level is None:
        return None
    return level if budget.is_budget(level) else recipes.level_of(level).name


def _levels(wish: Wish) -> list[str]:
    """All levels, a budget that is asked for first."""
    asked = wish.forced if wish.forced and budget.is_budget(wish.forced) else None
    return [asked, *recipes.LEVELS] if asked else list(recipes.LEVELS)
