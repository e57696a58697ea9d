"""The tensors of a PEFT adapter in pairs: A and B of each module of its base."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from quant.errors import MalformedFile, UnsupportedModel
from quant.safetensors import Entry

# PEFT's own modules stand around the base's (`base_model.model.`); some programs keep the adapter's name (`default`).
_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)\.lora_(?:(?P<linear>[AB])(?:\.\w+)?\.weight|embedding_(?P<row>[AB])(?:\.\w+)?)"
)
_LONGEST = 80
# Weights of the base that PEFT saves beside a change of its embedding.
_OF_BASE = (".base_layer.weight", ".base_layer.bias")
# Types of numbers that are converted.
_FLOATS = ("F32", "F16", "BF16", "F64")


@dataclass(frozen=True)
class Pair:
    """The change of one module's weight, B·A: `down` is A `(rank, inputs)`, `up` is B `(outputs, rank)`.

    For an `embedding` the inputs are the tokens, so A has a column for each.
    """

    module: str
    down: Entry
    up: Entry
    embedding: bool

    @property
    def rank(self) -> int:
        """The rows of A and the columns of B."""
        return self.down.shape[0]


def read_pairs(entries: Iterable[Entry]) -> list[Pair]:
    """The pairs, in file order. Raises UnsupportedModel for other tensors, MalformedFile for half a pair or rank 0."""
    halves: dict[tuple[str, bool], dict[str, Entry]] = {}
    for entry in entries:
        found = _NAME.fullmatch(entry.name)
        if found is None and entry.name.endswith(_OF_BASE):
            continue
        if found is None:
            raise _stray(entry)
        half, embedding = found["linear"] or found["row"], found["row"] is not None
        if half in halves.setdefault((found["module"], embedding), {}):
            raise UnsupportedModel(
                f"it holds several adapters: `{_shown(entry.name)}` is there twice", "save one alone"
            )
        halves[found["module"], embedding][half] = entry
    if not halves:
        raise MalformedFile("the adapter holds no tensors", "save it again")
    return [_pair(module, embedding, found) for (module, embedding), found in halves.items()]


def _pair(module: str, embedding: bool, found: dict[str, Entry]) -> Pair:
    shown = _shown(module)
    if len(found) < 2:
        lacking = "B" if "A" in found else "A"
        raise MalformedFile(f"the adapter has half a change of `{shown}`: there is no matrix {lacking}")
    down, up = found["A"], found["B"]
    for entry in (down, up):
        if entry.dtype not in _FLOATS:
            raise UnsupportedModel(f"`{_shown(entry.name)}` is stored as {entry.dtype}, and not as plain numbers")
        if len(entry.shape) != 2:
            raise UnsupportedModel(f"`{_shown(entry.name)}` has {len(entry.shape)} dimensions: it changes no matrix")
    if 0 in (*down.shape, *up.shape):
        raise MalformedFile(f"the change of `{shown}` has rank 0, or no values")
    if down.shape[0] != up.shape[1]:
        raise MalformedFile(
            f"the matrices of `{shown}` do not fit together: A has rank {down.shape[0]} and B has {up.shape[1]}"
        )
    return Pair(module, down, up, embedding)


def _stray(entry: Entry) -> UnsupportedModel:
    """The error for a tensor that is no A and no B, with what it is where its name tells."""
    name = entry.name
    reason = "it is neither a matrix A nor a matrix B"
    if "lora_magnitude_vector" in name:
        reason = "it belongs to DoRA, which llama.cpp does not compute"
    elif re.search(r"lora_[AB].*\.bias$", name):
        reason = "it is a bias of an adapter's matrix, for which a GGUF adapter has no place"
    elif "embed" in name or "lm_head" in name:
        reason = (
            "a whole embedding or output was saved with it, as for new tokens, and a GGUF adapter has no place for it"
        )
    elif "norm" in name:
        reason = "a whole norm was saved with it, and a GGUF adapter has no place for it"
    return UnsupportedModel(
        f"`{_shown(name)}` cannot be converted: {reason}", "merge the adapter into its base instead"
    )


def _shown(name: str) -> str:
    return ascii(name)[1:-1][:_LONGEST]
