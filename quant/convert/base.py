"""What a family of models is, as data, and how a plan is made of it.

A family lists the tensors of its source with their names and shapes in GGUF. A tensor that is not listed is an error,
and so is one that is missing or has another shape: nothing is dropped or guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from quant.convert.config import Config
from quant.errors import MalformedFile, UnsupportedModel
from quant.gguf import MAX_BLOCKS
from quant.plan import TensorPlan, Transform
from quant.safetensors import Entry

# The types of safetensors that hold weights as they are; others belong to quantized models.
PLAIN = ("F32", "F16", "BF16", "F64")


class Known(NamedTuple):
    """A tensor of a family: names in source and GGUF (`{}` is the layer) and shape, by the names of sizes."""

    source: str
    target: str
    shape: tuple[str, ...]
    required: bool = True
    transform: str = ""


@dataclass(frozen=True, slots=True)
class Family:
    """Models that are converted alike.

    `classes` are the names in `architectures` of `config.json`, `architecture` is GGUF's. `read_sizes` gives the sizes
    by which `tensors` name their shapes ("layers" among them), `describe` the GGUF entries, `transforms` the changes by
    the names that `tensors` use, `computed` the tensors that have no source. `unused` matches what a source may hold
    and no engine needs.
    """

    classes: tuple[str, ...]
    architecture: str
    tensors: tuple[Known, ...]
    unused: re.Pattern[str]
    read_sizes: Callable[[Config], Mapping[str, int]]
    describe: Callable[[Config, Mapping[str, int]], dict[str, Any]]
    transforms: Callable[[Mapping[str, int]], Mapping[str, Transform]]
    computed: Callable[[Config, Mapping[str, int]], tuple[TensorPlan, ...]]


@dataclass(frozen=True, slots=True)
class PairRotaryHalves:
    """Reorders the rows of every head from Hugging Face's order to GGUF's.

    Rotary embedding turns pairs of values. `transformers` pairs row i of a head with row i + size/2, llama.cpp's
    `llama` architecture row 2i with row 2i + 1. `rows` is the size of a head, so a slab holds whole heads.
    """

    rows: int

    def apply(self, x: np.ndarray) -> np.ndarray:
        """(heads * rows, columns) of any dtype, reordered within each head."""
        halves = x.reshape(-1, 2, self.rows // 2, x.shape[-1])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(x.shape)


def plan_tensors(
    family: Family, config: Config, sizes: Mapping[str, int], entries: tuple[Entry, ...]
) -> tuple[TensorPlan, ...]:
    """Map every source tensor to its place; raises when one is unknown, missing, of another shape or not plain."""
    if sizes["layers"] > MAX_BLOCKS:
        raise UnsupportedModel(f"the model has {sizes['layers']} layers, and at most {MAX_BLOCKS} can be run")
    wanted = _expand(family, sizes["layers"])
    tied = config.flag("tie_word_embeddings") and "lm_head.weight" in wanted
    if tied:
        wanted["lm_head.weight"] = wanted["lm_head.weight"]._replace(required=False)
    entries = tuple(entry for entry in entries if not family.unused.fullmatch(entry.name))
    unknown = [entry.name for entry in entries if entry.name not in wanted]
    if unknown:
        listed = ", ".join(f"`{name[:80]}`" for name in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise UnsupportedModel(
            f"the `{family.architecture}` family has no place for {listed}{more}",
            hint="this is a variant of the architecture that cannot be converted yet",
        )
    present = {entry.name for entry in entries}
    missing = [name for name, known in wanted.items() if known.required and name not in present]
    if missing:
        raise MalformedFile(f"{len(missing)} tensors are missing, the first is `{missing[0]}`")
    transforms = family.transforms(sizes)
    # Tied: `transformers` shares the embedding and never looks at a head that the file may also hold.
    return tuple(
        _place(entry, wanted[entry.name], sizes, transforms)
        for entry in entries
        if not (tied and entry.name == "lm_head.weight")
    )


def _expand(family: Family, layers: int) -> dict[str, Known]:
    """Every tensor that the family knows, with the layer filled in, by its name in the source."""
    wanted = {}
    for known in family.tensors:
        for layer in range(layers) if "{}" in known.source else (0,):
            source, target = known.source.format(layer), known.target.format(layer)
            wanted[source] = known._replace(source=source, target=target)
    return wanted


def _place(entry: Entry, known: Known, sizes: Mapping[str, int], transforms: Mapping[str, Transform]) -> TensorPlan:
    shape = tuple(sizes[name] for name in known.shape)
    if entry.shape != shape:
        raise MalformedFile(f"tensor `{entry.name}` is {list(entry.shape)} and `config.json` asks for {list(shape)}")
    if entry.dtype not in PLAIN:
        raise UnsupportedModel(
            f"tensor `{entry.name}` is stored as {entry.dtype}, so the model is already quantized",
            hint="use the repository with the original weights",
        )
    transform = transforms[known.transform] if known.transform else None
    return TensorPlan(
        known.target, shape, entry.dtype, entry.name, entry.shard, entry.offset, entry.size, transform=transform
    )
