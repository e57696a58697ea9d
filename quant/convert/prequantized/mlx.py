"""Layouts that MLX has of its own, whether weights are quantized or not: experts stacked, convolutions turned, norms.

`sanitize` of a model in mlx-lm changes tensors as they come from Hugging Face, and mlx-lm stores them so. Here they are
named and shaped as in the source again. Sources: `mixtral.py`, `qwen3_next.py`, `qwen3_5.py` and `mamba2.py` of mlx-lm.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from quant.convert.reordering import ROW_MOVES, TileColumns, TileRates
from quant.convert.transforms import AddOne, NegativeExponential, TakeRows
from quant.errors import MalformedFile
from quant.plan import TensorPlan, Transform
from quant.safetensors import Entry

_STACK = re.compile(r"(.+)\.switch_mlp\.(gate|up|down)_proj\.(weight|scales|biases|global_scale)")
_EXPERT = re.compile(r"(.+)\.experts\.\d+\.(\w+)")
# The part of a layer with experts in Mixtral and its like, and their names for an expert's matrices.
_LIKE_MIXTRAL = "block_sparse_moe"
_NUMBERED = {"gate": "w1", "down": "w2", "up": "w3"}
# More experts than any model has in a layer.
_MOST = 4096
# Changes that are the same for weights as MLX has them. Gemma's norms are among these: MLX adds 1 while it computes.
_FITTING = (*ROW_MOVES, AddOne, NegativeExponential, TakeRows, TileColumns, TileRates)


class Restored(NamedTuple):
    """The tensors by the source's names; `shifted`: 1 is added to norms already that store their weights minus 1."""

    entries: list[Entry]
    shifted: bool


def restored(entries: Iterable[Entry]) -> Restored:
    """The tensors as the source had them, where MLX changed their layout. Raises MalformedFile."""
    given = list(entries)
    turned = {entry.name for entry in given if _is_turned(entry)}
    found = [_unturned(entry) if entry.name in turned else entry for entry in given]
    return Restored([each for entry in found for each in _unstacked(entry)], bool(turned))


def _is_turned(entry: Entry) -> bool:
    """Whether it is a convolution with its kernel before the one channel: the bytes are the same."""
    return entry.name.endswith("conv1d.weight") and len(entry.shape) == 3 and entry.shape[1] != 1 == entry.shape[2]


def _unturned(entry: Entry) -> Entry:
    channels, kernel, one = entry.shape
    return replace(entry, shape=(channels, one, kernel))


def _unstacked(entry: Entry) -> Iterator[Entry]:
    """The matrices of a stack of experts, one by one; any other tensor as it is."""
    stack = _STACK.fullmatch(entry.name)
    if not stack:
        yield entry
        return
    before, which, part = stack.groups()
    if len(entry.shape) != (1 if part == "global_scale" else 3) or not 0 < entry.shape[0] <= _MOST:
        raise MalformedFile(f"`{entry.name}` is {list(entry.shape)}, which is no stack of experts")
    name = _NUMBERED[which] if before.endswith(_LIKE_MIXTRAL) else f"{which}_proj"
    experts, *shape = entry.shape
    size = entry.size // experts
    for number in range(experts):
        yield replace(
            entry,
            name=f"{before}.experts.{number}.{name}.{part}",
            shape=tuple(shape),
            offset=entry.offset + number * size,
            size=size,
        )


def path_of(name: str) -> str:
    """The module by which the configuration names a matrix; the matrix of an expert belongs to a stack."""
    found = _EXPERT.fullmatch(name)
    if not found:
        return name
    matrix = next((f"{which}_proj" for which, number in _NUMBERED.items() if number == found[2]), found[2])
    return f"{found[1]}.switch_mlp.{matrix}"


def unshifted(tensors: Iterable[TensorPlan]) -> tuple[TensorPlan, ...]:
    """The tensors of a model whose norms are shifted already."""
    return tuple(replace(each, transform=None) if isinstance(each.transform, AddOne) else each for each in tensors)


def fits(transform: Transform | None) -> bool:
    """Whether weights as MLX has them are changed so on the way to GGUF."""
    return transform is None or isinstance(transform, _FITTING)
