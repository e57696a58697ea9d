"""Which level of this model should this machine hold? One way for `lm pull` and `lm fit`, so that they always agree.

The candidates come from the model's plan, their memory from llama.cpp, their speed from a probe; the choice among them
is made by `runtime/machine/rule.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from quant.errors import UnknownLevel, UnsupportedModel
from quant.gguf.writer import encode_header, layout
from quant.levels import budget, recipes, taken
from quant.plan import NEXT_TOKEN_LAYERS, ModelPlan
from quant.types import Tensor
from runtime.errors import DoesNotFit
from runtime.machine.devices import Layers
from runtime.machine.fit import ModelSize
from runtime.machine.hardware import Hardware, detect, usable_cpus
from runtime.machine.inspection import Probed, Refused, Reserved, ask_model
from runtime.machine.rates import Rates
from runtime.machine.rule import UNQUANTIZED, Candidate, Choice, Host, Option, Wish, choose, judge
from runtime.machine.step_time import Reads
from runtime.units import size_text

# The level that quantizes experts alone.
_OF_EXPERTS = "MXFP4_MOE"
# Below this level a model loses too much without importance data.
COARSEST = "Q3_K_M"
# Bytes of weights that one token reads. A model below that is fast enough at any level on any machine, so that no
# speed is measured for it.
SMALL_BYTES = 200_000_000


@dataclass(frozen=True)
class Advice:
    """The choice, and every level that was judged, from the largest to the smallest."""

    choice: Choice
    options: list[Option]
    model_size: ModelSize


@dataclass(frozen=True)
class Machine:
    """This machine. `cache` is the folder of its measured speeds; `notice` gets a sentence before each measurement."""

    hardware: Hardware
    cache: Path
    notice: Callable[[str], None] = lambda text: None

    def host(self, disk_free: int | None, *, measure: bool) -> Host:
        """The machine with its speeds. With `measure`, unknown and stale speeds are measured, which takes seconds."""
        rates = self._rates("", measure)
        card_rates = self._rates(self.hardware.cards[0].name, measure) if self.hardware.cards else None
        return Host(self.hardware, rates, card_rates, disk_free)

    def _rates(self, card: str, measure: bool) -> Probed | None:
        """The rates of a card, or of the processor ("")."""
        rates = Rates(self.cache, self.hardware.cpus, card)
        if measure and rates.stale():
            self.notice(f"measuring how fast {card or 'this machine'} reads weights; takes about 10 s, once")
            rates.measure()
        return rates.known()


def this_machine(cache: Path, notice: Callable[[str], None] = lambda text: None) -> Machine:
    """This machine, its memory's bandwidth from the cache where that is known."""
    return Machine(detect(Rates(cache, usable_cpus()).bandwidth()), cache, notice)


class Chooser:
    """Judges the levels of one model for a machine."""

    def __init__(self, plan: ModelPlan, machine: Machine) -> None:
        self._plan = plan
        self._machine = machine

    def choose(self, wish: Wish, disk_free: int | None = None) -> Choice:
        """The level by the rule, or the level asked for. Raises DoesNotFit, UnknownLevel."""
        levels = [name for name in self._levels(wish) if name in recipes.LADDER or name == wish.forced]
        model_size, candidates = self._prepare(levels, wish)
        host = self._machine.host(disk_free, measure=wish.forced is None and _matters(candidates))
        return self._explained(choose(candidates, model_size, host, wish))

    def advise(self, wish: Wish, disk_free: int | None = None) -> Advice:
        """As `choose`, and the judgement of every level; a quantized file has one level, its own."""
        if self._plan.level:
            return self._advise_as_stored(wish, disk_free)
        model_size, candidates = self._prepare(self._levels(wish), wish)
        host = self._machine.host(disk_free, measure=_matters(candidates))
        options = judge(candidates, model_size, host, wish)
        return Advice(self._explained(choose(candidates, model_size, host, wish)), options, model_size)

    def _levels(self, wish: Wish) -> list[str]:
        """All levels of this model, a budget that is asked for first. Raises UnknownLevel for one that it cannot have.

        MXFP4_MOE is a level of experts: without any, its file would be Q8_0 under another name.
        """
        dense = not any("_exps." in tensor.name for tensor in self._plan.tensors)
        if dense and wish.forced == _OF_EXPERTS:
            message = f"{_OF_EXPERTS} is a level for models with experts, and this one has none"
            raise UnknownLevel(message, "take Q8_0, which is what it would become, or Q4_K_M, which is as small")
        by_budget = [wish.forced] if wish.forced and budget.is_budget(wish.forced) else []
        return by_budget + [name for name in recipes.LEVELS if not dense or name != _OF_EXPERTS]

    def automatic_bytes(self, wish: Wish) -> int:
        """Bytes of weights at the level that the rule takes by known speeds; the smallest where none fits."""
        model_size = ModelSize.of_plan(self._plan)
        candidates = [candidate_at(self._plan, name, model_size) for name in recipes.LADDER]
        try:
            choice = choose(candidates, model_size, self._machine.host(None, measure=False), replace(wish, forced=None))
        except DoesNotFit:
            return min(each.weights_bytes for each in candidates)
        return choice.need.weights

    def _explained(self, choice: Choice) -> Choice:
        """The choice, whose reason also says what is left out of the source, and which tensors stay as published."""
        if not choice.level:
            return choice
        clauses, left = [choice.reason], self._plan.left_out
        if left:
            kind = "" if left.keys() == {NEXT_TOKEN_LAYERS} else "text only: "
            clauses.append(f"{kind}{' and '.join(left)} ({size_text(sum(left.values()))}) left out")
        if any(tensor.packing or tensor.published for tensor in self._plan.tensors):
            clauses += taken.clauses(self._plan, budget.types_of(self._plan, choice.level))
        return self._remarked(replace(choice, reason="; ".join(clauses)))

    def _remarked(self, choice: Choice) -> Choice:
        return replace(choice, reason="; ".join((choice.reason, *self._plan.remarks)))

    def among(self, candidates: Sequence[Candidate], wish: Wish, disk_free: int | None = None) -> Advice:
        """As `advise`, but the candidates are files that others have made, from the largest to the smallest."""
        model_size = self._reserved(ModelSize.of_plan(self._plan), wish)
        candidates = self._sized(candidates)
        host = self._machine.host(disk_free, measure=_matters(candidates))
        choice = self._remarked(choose(candidates, model_size, host, wish))
        return Advice(choice, judge(candidates, model_size, host, wish), model_size)

    def _advise_as_stored(self, wish: Wish, disk_free: int | None) -> Advice:
        plan, model_size = self._plan, ModelSize.of_plan(self._plan)
        model_size = self._reserved(model_size, wish)
        only = [candidate_of(plan, plan.level, plan.as_stored(), model_size, worthwhile=True, listed=True)]
        host = Host(self._machine.hardware, disk_free=disk_free)
        only = self._sized(only)
        choice = choose(only, model_size, host, replace(wish, forced=plan.level))
        if choice.level:
            choice = self._remarked(replace(choice, reason=reason_as_stored(plan.level)))
        return Advice(choice, judge(only, model_size, host, wish), model_size)

    def _prepare(self, levels: Iterable[str], wish: Wish) -> tuple[ModelSize, list[Candidate]]:
        """The model's size with llama.cpp's own answer, and a candidate for each level."""
        model_size = ModelSize.of_plan(self._plan)
        with ThreadPoolExecutor(1) as aside:  # llama.cpp is asked in another process
            reserved = aside.submit(self._reserved, model_size, wish)
            candidates = [candidate_at(self._plan, name, model_size, forced=name == wish.forced) for name in levels]
            return reserved.result(), self._sized(candidates)

    def _sized(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The candidates with the size of the header, which is nearly the same at all levels."""
        header_bytes = len(encode_header(self._plan.metadata, layout(self._tensors()), self._plan.kinds))
        return [replace(each, header_bytes=header_bytes) for each in candidates]

    def _tensors(self) -> list[Tensor]:
        """The tensors as published, or at the best level."""
        plan = self._plan
        return plan.as_stored() if plan.level else plan.at(recipes.assign(plan, recipes.LADDER[0]))

    def _reserved(self, model_size: ModelSize, wish: Wish) -> ModelSize:
        """The size with llama.cpp's own answer, where it can be asked; UnsupportedModel where it refuses the model."""
        plan, tensors = self._plan, self._tensors()
        if not model_size.vocabulary:
            model_size = replace(model_size, vocabulary=sum(each.rows for each in tensors if each.role == "token_embd"))
        answer = ask_model(plan.metadata, tensors, model_size.cap_context(wish.cache_config), plan.kinds)
        if isinstance(answer, Reserved):
            return model_size.with_reserved(answer)
        if answer.unloadable:
            raise _unloadable(plan, answer)
        return model_size


def _unloadable(plan: ModelPlan, refused: Refused) -> UnsupportedModel:
    """The refusal of a model, with the names in the source of tensors that llama.cpp has no place for."""
    hint = "the llama.cpp in this version of lm cannot run such a model; no weights were downloaded"
    asked_for = set(refused.asked_for)
    homeless = [each.source or each.name for each in plan.tensors if each.name not in asked_for] if asked_for else []
    if not homeless:
        return UnsupportedModel(f"llama.cpp does not load this model: {refused.reason}", hint)
    more = f" and {len(homeless) - 1} more" if len(homeless) > 1 else ""
    return UnsupportedModel(f"llama.cpp's `{plan.architecture}` has no place for `{homeless[0][:80]}`{more}", hint)


def _matters(candidates: Sequence[Candidate]) -> bool:
    """Whether the machine's speed can decide: a small model is fast enough at any level."""
    return max(sum(each.reads.weights.values()) for each in candidates if each.reads) > SMALL_BYTES


def reason_as_stored(level: str) -> str:
    """The reason for the level of a file that is quantized already."""
    if level in UNQUANTIZED:
        return f"{level}: the tag names this file, which is taken as it is"
    return f"{level}: the file is quantized already and is taken as it is"


def candidate_at(plan: ModelPlan, level: str, model_size: ModelSize, forced: bool = False) -> Candidate:
    """The model at `level`."""
    listed = forced or level in recipes.LADDER
    tensors = plan.at(budget.types_of(plan, level))
    return candidate_of(plan, level, tensors, model_size, worthwhile(level), listed)


def candidate_of(
    plan: ModelPlan, name: str, tensors: Sequence[Tensor], model_size: ModelSize, worthwhile: bool, listed: bool
) -> Candidate:
    """The model with these tensors, as a candidate of this name."""
    weights = sum(tensor.nbytes for tensor in tensors)
    layers = Layers.of(tensors, plan.tied)
    return Candidate(name, weights, worthwhile, reads(plan, tensors, model_size), listed, layers=layers)


def worthwhile(level: str) -> bool:
    """Whether a level is good enough without importance data."""
    return level not in recipes.LEVELS or recipes.LEVELS[level].bits >= recipes.LEVELS[COARSEST].bits


def reads(plan: ModelPlan, tensors: Iterable[Tensor], model_size: ModelSize) -> Reads:
    """The bytes that the step of one token reads, by type: each matrix once, and the part of the experts that answer.

    An embedding that is not the output matrix as well counts nothing, since one row of it is read.
    """
    architecture = plan.architecture
    experts = plan.metadata.get(f"{architecture}.expert_count", 0)
    share = plan.metadata.get(f"{architecture}.expert_used_count", 0) / experts if experts else 1.0
    tied = plan.tied
    weights: dict[str, int] = {}
    for tensor in tensors:
        if tensor.role == "token_embd" and not tied:
            continue
        size = round(tensor.nbytes * (share if "_exps." in tensor.name else 1.0))
        weights[tensor.type.name] = weights.get(tensor.type.name, 0) + size
    return Reads(weights, model_size.layers, model_size.attention_heads, 2 * model_size.row_values)


def canonical(level: str | None) -> str | None:
    """The level that a name asks for, a named one or a budget; None for the best. Raises UnknownLevel."""
    if level is None:
        return None
    return level if budget.is_budget(level) else recipes.level_of(level).name
