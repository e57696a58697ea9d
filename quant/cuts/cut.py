"""From the plan of a model to the plan of a smaller one, by a wish."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from quant.cuts.experts import Experts
from quant.cuts.layers import without_layers
from quant.cuts.scripts import Scripts
from quant.cuts.steps import width_of
from quant.cuts.vocabulary import WholeVocabulary
from quant.cuts.width import narrowed
from quant.cuts.wish import Cut
from quant.errors import UnsupportedModel
from quant.notes import CUT
from quant.plan import ModelPlan


class CutPlan(NamedTuple):
    """The plan of a file that is cut, and a sentence on what went, "" where everything stays."""

    plan: ModelPlan
    reason: str


def cut(plan: ModelPlan, wish: Cut) -> CutPlan:
    """The plan without what the wish drops.

    Raises UnsupportedModel for a model of which this cannot be cut, where nothing would be dropped, and for a plan that
    is not of a GGUF file which is copied, unless channels are dropped.
    """
    if wish.empty:
        return CutPlan(plan, "")
    if wish.width:
        return _width(plan, wish)
    if not plan.level:
        raise UnsupportedModel("only a model that is here can be cut", "pull it first")
    note: dict[str, Any] = {}
    clauses: list[str] = []
    before = plan
    for step in (_experts, _layers, _vocabulary):
        plan = step(plan, wish, note, clauses)
    saved = before.source_bytes - plan.source_bytes
    share = f"{saved / before.source_bytes:.1%}" if before.source_bytes else "nothing"
    clauses.append(f"{saved / 1e6:,.1f} MB ({share}) less; what stays is copied as it is")
    metadata = {**plan.metadata, CUT: json.dumps(_earlier(before) | note)}
    order = {shard: number for number, shard in enumerate(plan.shards)}
    tensors = tuple(sorted(plan.tensors, key=lambda tensor: (order[tensor.shard], tensor.offset)))  # to be read once
    return CutPlan(replace(plan, metadata=metadata, tensors=tensors, translated=True), "; ".join(clauses))


def _width(plan: ModelPlan, wish: Cut) -> CutPlan:
    """The plan of weights that are quantized anew, with fewer channels."""
    before, narrow = width_of(plan), narrowed(plan, Path(wish.width))
    after = width_of(narrow)
    note = {"width": {"kept": after, "of": before, "by": wish.read}}
    reason = f"{after:,} of {before:,} channels stay in each feed-forward, fitted to do the others' work on {wish.read}"
    return CutPlan(
        replace(narrow, metadata={**plan.metadata, **narrow.metadata, CUT: json.dumps(_earlier(plan) | note)}), reason
    )


def _experts(plan: ModelPlan, wish: Cut, note: dict[str, Any], clauses: list[str]) -> ModelPlan:
    if not wish.experts:
        return plan
    experts = Experts(plan)
    plan = experts.cut(plan, wish.experts)
    kept = len(next(iter(wish.experts.values())))
    dropped = {layer: sorted(set(range(experts.count)) - set(numbers)) for layer, numbers in wish.experts.items()}
    note["experts"] = {"kept": kept, "of": experts.count, "by": wish.read, "dropped": dropped}
    clauses.append(f"{kept} of {experts.count} experts stay in each layer: those that add most to {wish.read}")
    return plan


def _layers(plan: ModelPlan, wish: Cut, note: dict[str, Any], clauses: list[str]) -> ModelPlan:
    if not wish.layers:
        return plan
    note["layers"] = sorted(set(wish.layers))
    names = ", ".join(map(str, note["layers"]))
    clauses.append(f"without layer{'s' * (len(note['layers']) > 1)} {names}")
    return without_layers(plan, wish.layers)


def _vocabulary(plan: ModelPlan, wish: Cut, note: dict[str, Any], clauses: list[str]) -> ModelPlan:
    if not wish.scripts and wish.tokens is None:
        return plan
    vocabulary = WholeVocabulary(plan)
    kept = vocabulary.wanted(Scripts(wish.scripts) if wish.scripts else wish.tokens or [])
    note["vocabulary"] = {"kept": len(kept), "of": vocabulary.size, "by": wish.words}
    clauses.append(f"{len(kept):,} of {vocabulary.size:,} tokens stay, those of `{wish.words}`")
    return vocabulary.cut(plan, kept)


def _earlier(plan: ModelPlan) -> dict[str, Any]:
    """The note of an earlier cut, whose layers and experts were numbered otherwise; {} for none."""
    with suppress(ValueError, TypeError):
        if isinstance(earlier := json.loads(plan.metadata.get(CUT, "")), dict):
            return {"before": earlier}
    return {}
