"""From the plan of a model to the plan of a smaller one, by a wish."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, NamedTuple

from quant.cuts.layers import without_layers
from quant.cuts.scripts import Scripts
from quant.cuts.vocabulary import WholeVocabulary
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
    is not of a GGUF file which is copied.
    """
    if wish.empty:
        return CutPlan(plan, "")
    if not plan.level:
        raise UnsupportedModel("only a model that is here can be cut", "pull it first")
    note: dict[str, Any] = {}
    before, clauses = plan, []
    if wish.layers:
        plan = without_layers(plan, wish.layers)
        note["layers"] = sorted(set(wish.layers))
        names = ", ".join(map(str, note["layers"]))
        clauses.append(f"without layer{'s' * (len(note['layers']) > 1)} {names}")
    if wish.scripts or wish.tokens is not None:
        vocabulary = WholeVocabulary(plan)
        kept = vocabulary.wanted(Scripts(wish.scripts) if wish.scripts else wish.tokens or [])
        plan = vocabulary.cut(plan, kept)
        note["vocabulary"] = {"kept": len(kept), "of": vocabulary.size, "by": wish.words}
        clauses.append(f"{len(kept):,} of {vocabulary.size:,} tokens stay, those of `{wish.words}`")
    saved = before.source_bytes - plan.source_bytes
    share = f"{saved / before.source_bytes:.1%}" if before.source_bytes else "nothing"
    clauses.append(f"{saved / 1e6:,.1f} MB ({share}) less; what stays is copied as it is")
    metadata = {**plan.metadata, CUT: json.dumps(note)}
    order = {shard: number for number, shard in enumerate(plan.shards)}
    tensors = tuple(sorted(plan.tensors, key=lambda tensor: (order[tensor.shard], tensor.offset)))  # to be read once
    return CutPlan(replace(plan, metadata=metadata, tensors=tensors, translated=True), "; ".join(clauses))
