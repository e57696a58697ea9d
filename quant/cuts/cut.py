"""A cut as it is wished, and its way from one plan to another."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec

from quant.cuts.layers import without_layers
from quant.cuts.scripts import Scripts
from quant.cuts.vocabulary import WholeVocabulary
from quant.errors import UnsupportedModel
from quant.notes import CUT
from quant.plan import ModelPlan


class Cut(msgspec.Struct, frozen=True, omit_defaults=True):
    """The parts of a model that stay, or go.

    - `scripts`: names of scripts, such as `latin`; tokens that no text in them can have are dropped.
    - `tokens`: ids of tokens that texts need; all others are dropped. None where there are no such texts.
    - `words`: how people call what the vocabulary is cut to, such as `en` or the name of a file.
    - `layers`: numbers of layers that are dropped, from 0.
    """

    scripts: tuple[str, ...] = ()
    tokens: list[int] | None = None
    words: str = ""
    layers: tuple[int, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether everything stays."""
        return not (self.scripts or self.layers) and self.tokens is None


NO_CUT = Cut()


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
