"""Blocks that predict further tokens: kept where llama.cpp drafts with them, else left out (multi-token prediction).

They stand behind the model's last layer. In most models they have the next layer's number, in Qwen's names of their own
(`mtp.*`). Tables of families know them as the layers `predicting`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from quant.convert.base import EMBEDDING, HEAD, Family, Known, Sizes
from quant.convert.config import ModelConfig
from quant.convert.peeking import alike
from quant.convert.placing import expand
from quant.plan import Files
from quant.safetensors import Entry

PREDICTING = "predicting"
# More blocks than llama.cpp runs for any family here.
_BLOCKS = 1
S = TypeVar("S", bound=Sizes)


class Heads(NamedTuple):
    """The sizes and tensors of the model with what is kept of its blocks, and the bytes of blocks that are left out."""

    sizes: Any
    entries: list[Entry]
    left_out: int


def keep(family: Family[Any], config: ModelConfig, sizes: Sizes, entries: Sequence[Entry], files: Files) -> Heads:
    """Keep the block of a model whose family drafts with it, where the block is whole; leave it out elsewhere.

    `files` are read where a block has an embedding or an output of its own: one that is the model's stays behind.
    """
    behind = [entry for entry in entries if _is_behind(entry, family, config, sizes)]
    if not behind:
        return Heads(sizes, list(entries), 0)
    kept: set[str] = set()
    wider = replace(sizes, predicting=frozenset(range(sizes.layers, sizes.layers + _BLOCKS)))
    rows = {name: row for name, (row, _) in expand(family, wider).items() if row.layers == PREDICTING}
    named = {_bare(family, entry.name): entry for entry in behind}
    if rows and _is_whole(rows, named):
        same = _same_as_the_models(family, rows, entries, named, files)
        kept = {entry.name for name, entry in named.items() if name not in same}
    rest = [entry for entry in entries if entry not in behind or entry.name in kept]
    lost = sum(entry.size for entry in behind if entry.name not in kept)
    return Heads(wider if kept else sizes, rest, 0 if kept else lost)


def _is_behind(entry: Entry, family: Family[Any], config: ModelConfig, sizes: Sizes) -> bool:
    """Whether a tensor belongs to a block that predicts further tokens."""
    more = config.get("num_nextn_predict_layers") or config.get("num_mtp_layers") or 0
    if re.match(rf"{family.prefix}mtp\.", entry.name):
        return True
    found = re.match(rf"{family.prefix}(mtp_|layers\.(?P<layer>\d{{1,6}})\.)", entry.name)
    if not found or type(more) is not int or not more:
        return False
    return found["layer"] is None or sizes.layers <= int(found["layer"]) < sizes.layers + more


def _bare(family: Family[Any], name: str) -> str:
    start = re.match(family.prefix, name)
    return name[start.end() :] if start else name


def _is_whole(rows: dict[str, Known], named: dict[str, Entry]) -> bool:
    """Whether all tensors of the table are there and no other; experts are stored in one of the ways that it has."""
    ways = [row.choice for name, row in rows.items() if row.choice and name in named]
    needed = {name for name, row in rows.items() if row.required and row.choice in ("", *ways[:1])}
    return needed <= named.keys() <= rows.keys()


def _same_as_the_models(
    family: Family[Any],
    rows: dict[str, Known],
    entries: Sequence[Entry],
    named: dict[str, Entry],
    files: Files,
) -> set[str]:
    """The embedding and the output of a block, where they are copies of the model's."""
    of_model = {row.target: row.source for row in family.tensors if row.target in (EMBEDDING, HEAD)}
    found = {_bare(family, entry.name): entry for entry in entries}
    pairs = ((name, row.target) for name, row in rows.items() if name in named)
    kinds = {"embed_tokens": EMBEDDING, "shared_head_head": HEAD}
    return {
        name
        for name, target in pairs
        for part, whole in kinds.items()
        if target.endswith(f".nextn.{part}.weight")
        and (other := found.get(of_model.get(whole, "")) or found.get(of_model.get(EMBEDDING, "")))
        and alike(files, named[name], other)
    }
