"""Packed weights and their companions, put together: what the readers of all methods share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from quant.errors import MalformedFile, UnsupportedModel
from quant.plan import Files, Packing
from quant.safetensors import Entry
from quant.stream.packed.codes import WEIGHTS as WEIGHTS

Found = dict[str, Entry]
"""The tensors of a source by name."""
Reader = Callable[[dict[str, Any], Found, Files], Found]
"""Takes a configuration and the tensors; returns them with packed ones by the names of their matrices."""


def packed(found: Found, parts: list[str], name: str, shape: tuple[int, ...], packing: Packing) -> None:
    """Make one entry, `name`, of the tensors `parts`, weights first; companions stay in `found` for their files."""
    weights, *companions = (found[part] for part in parts)
    entry = replace(weights, name=name, shape=shape, dtype=packing.name, packing=packing, companions=tuple(companions))
    del found[weights.name]
    if name in found:
        raise MalformedFile(f"`{name}` is there as it is, and packed in `{weights.name}` too")
    found[name] = entry


def without_exact(packing: Packing) -> Packing:
    """The same packing for weights that cannot be taken over as they are."""
    return replace(packing, exact=None)  # type: ignore[type-var]


def companion(found: Found, weights: Entry, name: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> Entry:
    """The tensor `name`, of one of these types and one of these shapes; raises MalformedFile."""
    entry = found.get(name)
    if entry is None or entry.dtype not in dtypes or entry.shape not in shapes:
        raise do_not_fit(weights, name)
    return entry


def do_not_fit(entry: Entry, other: str) -> MalformedFile:
    """The error about weights and a companion that do not go together."""
    return MalformedFile(f"tensor `{entry.name}` and its scales, `{other}`, do not fit each other", WEIGHTS)


def number(config: dict[str, Any], key: str, allowed: tuple[int, ...]) -> int:
    """A number of the configuration; UnsupportedModel for one that is not allowed."""
    value = config.get(key)
    if type(value) is not int or value not in allowed:
        raise UnsupportedModel(f"the model is already quantized, with `{key}` {ascii(value)[:40]}", WEIGHTS)
    return value


def groups_of(weights: Entry, columns: int, count: int, other: str) -> int:
    """The number of groups in a row, where they are of equal length; raises MalformedFile."""
    if not count or columns % count:
        raise do_not_fit(weights, other)
    return count
