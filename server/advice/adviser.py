"""The process that says how much memory a model would take here: `python -P -m server.advice.adviser`.

It does the first part of a pull, the plan of the weights: headers are read, and no weight is downloaded. It gets one
`AdviceTask` and answers with one `Advised` or `ErrorReport`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quant.convert.gguf.variants import Variant
from quant.convert.planning import sketch_model
from quant.gguf.check import check_model
from quant.gguf.header import read_file
from quant.levels import published
from quant.plan import Files, ModelPlan
from registry.errors import RegistryError
from registry.names import parse
from registry.net.network import Network
from registry.sources.opening import open_source
from registry.words import AUTO, canonical_level
from runtime.errors import DoesNotFit
from runtime.machine.choosing import Advice, Chooser, Machine, canonical, this_machine
from runtime.machine.hardware import Hardware
from runtime.machine.rule import Option, Wish
from server.advice.frames import AdviceTask, Advised
from server.children.child_side import exit_now, run_task
from server.pulls.selection import select

# Enough for the header of a shard; a source of a hundred shards stays below 2 MB.
HEAD_BYTES = 16 << 10
# A silent source is given up after these seconds where there is a file in the store to judge instead.
_FALLBACK_SECONDS = 4.0


def main(argv: list[str]) -> int:
    """Answer one question; the exit status is 1 when that failed."""
    return run_task(argv, AdviceTask, lambda task, _: Advised(advise(task)))


@dataclass(frozen=True)
class _Judgement:
    """Advice on the levels of `plan`, whose weights come from `source`; `variants` are published files by tag.

    Where the source could not be reached, and the file in the store was judged alone, `unseen` says why.
    """

    advice: Advice
    plan: ModelPlan
    source: str
    variants: dict[str, Variant] = field(default_factory=dict)
    unseen: str = ""


def advise(task: AdviceTask) -> dict[str, Any]:
    """The answer of `POST /lm/advise`, with the keys of an error too where nothing fits; raises as planning does."""
    machine = this_machine(Path(task.model.cache_folder))
    hardware = machine.hardware
    level = task.level and canonical_level(task.level)
    wish = Wish(task.model.cache_config, level, task.enough, memory=task.memory, judge_only=True)
    judgement = _judge_model(task, wish, machine)
    advice, plan = judgement.advice, judgement.plan
    choice = advice.choice
    refusal = {} if choice.level else {"error": choice.reason, "hint": choice.hint, "code": DoesNotFit.code}
    return refusal | {
        "model": task.model.source or task.installed,
        "source": judgement.source,
        "parameters": plan.parameters or sum(tensor.elements for tensor in plan.tensors),
        "context": choice.context,
        "context_reason": advice.model_size.context_reason(choice.context),
        "sequences": wish.cache_config.sequences,
        "kv_type": wish.cache_config.kv_type,
        "enough_tokens_per_second": wish.enough,
        "memory": _memory(hardware, wish),
        "level": choice.level,
        "reason": choice.reason,
        "rejected": [{"level": level, "why": why} for level, why in choice.rejected],
        "levels": [_row(option, judgement, hardware, task.loaded) for option in advice.options],
        "quality_source": published.SOURCE,
        "measured_memory": advice.model_size.reserved is not None,
        "installed": task.installed,
        "unseen": judgement.unseen,
    }


def _judge_model(task: AdviceTask, wish: Wish, machine: Machine) -> _Judgement:
    """Advice on the model at its source, or on the file in the store."""
    if not task.path:
        return _judge_source(task, wish, machine)
    unseen = ""
    if task.published and task.model.source:
        try:
            return _judge_source(task, wish, machine, _FALLBACK_SECONDS)
        except RegistryError as error:
            unseen = str(error)
    header = read_file(Path(task.path))
    check_model(header)
    judgement = _judge(replace(ModelPlan.of(header), level=task.published), task.model.source, wish, machine, task)
    return replace(judgement, unseen=unseen)


def _judge_source(task: AdviceTask, wish: Wish, machine: Machine, timeout: float = Network.timeout) -> _Judgement:
    """Advice on the model at its source, given up when that is silent for `timeout` seconds. Raises as `select`."""
    reference = parse(task.model.source)
    wish = replace(wish, forced=wish.forced or reference.level)
    wish = replace(wish, forced=None if wish.forced == AUTO else wish.forced)
    hub = task.model.hub
    source = open_source(reference, hub.endpoint, Network(timeout=timeout).with_hub(hub))
    try:
        selection = select(source, machine, wish, task.model.disk_free, judge_all=True)
        if survey := selection.survey:
            return _Judgement(survey.advice, survey.plan, source.url, {} if survey.quantize else survey.variants)
        plan = sketch_model(_ReadAhead(selection.files))
        return _judge(plan, source.url, replace(wish, forced=selection.level), machine, task)
    finally:
        source.close()


def _judge(plan: ModelPlan, source: str, wish: Wish, machine: Machine, task: AdviceTask) -> _Judgement:
    """Advice on a plan: on every level that can be made of it, or on the one level that it has already."""
    wish = replace(wish, forced=None if plan.level else canonical(wish.forced))
    return _Judgement(Chooser(plan, machine).advise(wish, task.model.disk_free), plan, source)


class _ReadAhead:
    """A source that reads the first `HEAD_BYTES` of a file at once: one request for each header, not two."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._heads: dict[str, bytes] = {}
        self.title, self.names, self.size = files.title, files.names, files.size

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`."""
        if not name.endswith(".safetensors") or offset + size > HEAD_BYTES:
            return self._files.read(name, offset, size)
        if name not in self._heads:
            self._heads[name] = self._files.read(name, 0, min(HEAD_BYTES, self._files.size(name)))
        head = self._heads[name][offset : offset + size]
        return head if len(head) == size else self._files.read(name, offset, size)


def _memory(hardware: Hardware, wish: Wish) -> dict[str, int]:
    return {
        "total": hardware.memory_total,
        "limit": hardware.memory_limit,
        "available": hardware.memory_available,
        "reserve": 0 if wish.memory else hardware.reserve,
        "models_may_use": wish.budget(hardware),
    }


def _row(
    option: Option, judgement: _Judgement, hardware: Hardware, loaded: Sequence[tuple[str, int]]
) -> dict[str, Any]:
    """One line of the table."""
    variant = judgement.variants.get(option.level)
    need, quality = option.need, published.PUBLISHED.get(variant.level if variant else option.level)
    plan, advice = judgement.plan, judgement.advice
    elements = sum(tensor.elements for tensor in plan.tensors)
    evicted = _to_evict(need.total, hardware.memory_available, loaded)
    fits = "no" if option.fault else "evict" if evicted else "yes"
    return {
        "level": option.level,
        "bits_per_weight": round(8 * option.candidate.weights_bytes / elements, 2),
        "file": variant.files[0] if variant else "",
        "file_bytes": variant.size if variant else option.candidate.weights_bytes,
        "memory_bytes": need.total,
        "weights_bytes": need.weights,
        "cache_bytes": need.cache,
        "compute_bytes": need.compute,
        "card_layers": need.card_layers,
        "cards": [
            {
                "name": card.name,
                "weights_bytes": card.weights,
                "cache_bytes": card.cache,
                "compute_bytes": card.compute,
                "free_bytes": card.free,
                "shared": card.shared,
            }
            for card in need.cards
        ],
        "fits": fits,
        "evict": evicted if fits == "evict" else [],
        "tokens_per_second": round(option.speed, 2),
        "tokens_per_second_full": round(option.full_speed, 2),
        "perplexity_increase": quality.perplexity_increase if quality else None,
        "divergence": quality.divergence if quality else None,
        "quality": "published" if quality else "unknown",
        "listed": option.candidate.listed,
        "chosen": option.level == advice.choice.level,
        "why_not": "" if option.level == advice.choice.level else option.drawback,
    }


def _to_evict(need: int, free: int, loaded: Sequence[tuple[str, int]]) -> list[str]:
    """Which loaded models, least recently used first, would have to go; none where all of them would not help."""
    names = []
    for name, size in loaded:
        if need <= free:
            break
        names.append(name)
        free += size
    return names if need <= free else []


if __name__ == "__main__":
    exit_now(main(sys.argv[1:]))
