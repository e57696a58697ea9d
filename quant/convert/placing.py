"""The tensors of a source, placed: which tensors of the GGUF file they become, by the table of a family."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

from quant.convert.base import EMBEDDING, HEAD, UNQUANTIZED, Family, Known, Sizes
from quant.convert.config import ModelConfig
from quant.convert.peeking import alike
from quant.convert.prequantized.apart import scales_apart
from quant.convert.prequantized.pairing import WEIGHTS, without_exact
from quant.convert.reordering import moves_blocks
from quant.convert.transforms import Share
from quant.errors import MalformedFile, UnsupportedModel
from quant.gguf.architectures import BIASED, OUTPUT_NEEDED, WITHOUT_OUTPUT
from quant.plan import Files, Part, TensorPlan
from quant.safetensors import DTYPES, Entry

# Settings that give matrices biases.
_BIASES = ("attention_bias", "attention_out_bias", "mlp_bias", "use_bias")


class Wanted(NamedTuple):
    """A tensor that a source may have: a row of the family's table, filled in for one layer and one expert."""

    row: Known
    layer: int


def plan_tensors(
    family: Family[Any], config: ModelConfig, sizes: Sizes, entries: Sequence[Entry], files: Files
) -> tuple[TensorPlan, ...]:
    """Every tensor of the table, zeros first, the others in the order in which the source completes them.

    `files` are read where a tied model has an output of its own. Raises UnsupportedModel for a tensor that the family
    does not know or whose values are quantized, MalformedFile for one that is missing or has another shape.
    """
    wanted = expand(family, sizes)
    found = _strip(family, entries)
    tied = config.flag("tie_word_embeddings", family.tied)
    again = _tie(family, wanted, found, files) if tied else ()
    if not tied and family.architecture in WITHOUT_OUTPUT and any(row.target == HEAD for row, _ in wanted.values()):
        raise _no_output(family)
    _choose(wanted, found)
    zeros = _take_away(wanted, found, config, sizes)
    unknown = [entry.name for name, entry in found.items() if name not in wanted]
    if unknown:
        key = next((key for key in _BIASES if config.get(key) is True), "")
        because = f" (`{key}` in `{config.name}`)" if key and all(name.endswith(".bias") for name in unknown) else ""
        raise UnsupportedModel(
            f"the `{family.architecture}` family has no place for {_listed(unknown)}{because}",
            hint="this is a variant of the architecture that cannot be converted yet",
        )
    present = {row for name, (row, _) in wanted.items() if name in found}
    missing = [name for name, (row, _) in wanted.items() if name not in found and (row.required or row in present)]
    if missing:
        raise MalformedFile(f"the weights lack {_listed(missing)}", hint="download the model again")
    # In the order of the table, so that the experts of a layer stay in theirs.
    placed = [
        tensor
        for name, (row, layer) in wanted.items()
        if name in found and row.targets
        for tensor in _place(found[name], row, layer, sizes)
    ]
    for name, row in again:
        (tensor,) = _place(found[name], row, 0, sizes)
        parts = tensor.parts or (Part(tensor.shard, tensor.offset, tensor.size),)
        placed.append(replace(tensor, size=0, parts=parts))
    return (*zeros, *_stacked(list(scales_apart(placed, family.architecture)), entries))


def _no_output(family: Family[Any]) -> UnsupportedModel:
    return UnsupportedModel(
        f"its output is not its embedding (`tie_word_embeddings`), and llama.cpp's `{family.architecture}` has no other"
    )


def _choose(wanted: dict[str, Wanted], found: dict[str, Entry]) -> None:
    """Leave the rows `wanted` that store values as this model does; the first way where it has none of them.

    Layers of different kinds may store them in different ways.
    """
    for layers in {row.layers for row, _ in wanted.values() if row.choice}:
        rows = {name: row for name, (row, _) in wanted.items() if row.choice and row.layers == layers}
        kept = [row.choice for name, row in rows.items() if name in found] or [row.choice for row in rows.values()]
        for name in [name for name, row in rows.items() if row.choice != kept[0]]:
            del wanted[name]


def _take_away(
    wanted: dict[str, Wanted], found: dict[str, Entry], config: ModelConfig, sizes: Sizes
) -> list[TensorPlan]:
    """Zeros for the tensors that the model is set not to have, or may lack, which are then no longer `wanted`."""
    off = {
        name: each
        for name, each in wanted.items()
        if (each.row.switch and not config.flag(each.row.switch, True)) or (each.row.zeros and name not in found)
    }
    for name in off:
        del wanted[name]
    names = [(row.target.replace("{}", str(layer)), sizes.at(layer).shape(row.shape)) for row, layer in off.values()]
    return [TensorPlan(name, shape, "F32", values=bytes(4 * prod(shape))) for name, shape in names]


def _tie(
    family: Family[Any], wanted: dict[str, Wanted], found: dict[str, Entry], files: Files
) -> tuple[tuple[str, Known], ...]:
    """The sources to be placed once more, by a row of another: the embedding, where it is the output as well.

    `wanted` and `found` of a tied model are changed, after `tie_weights` of transformers. An output that differs from
    the embedding stays. An output alone is the embedding. Otherwise no output is wanted, and only some architectures
    need the embedding once more in its place.
    """
    outputs = [(name, row) for name, (row, _) in wanted.items() if row.target == HEAD]
    embedding = next((name for name, (row, _) in wanted.items() if row.target == EMBEDDING), "")
    again: list[tuple[str, Known]] = []
    for name, row in outputs:
        output = found.get(name)
        if output and embedding in found and not alike(files, found[embedding], output):
            if family.architecture in WITHOUT_OUTPUT:
                raise _no_output(family)
            continue
        del wanted[name]
        found.pop(name, None)
        if output and embedding:
            found.setdefault(embedding, output)
        if family.architecture in OUTPUT_NEEDED and embedding in found:
            again.append((embedding, row))
    return tuple(again)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(f"`{name[:80]}`" for name in names[:5]) + more


def expand(family: Family[Any], sizes: Sizes) -> dict[str, Wanted]:
    """Every tensor of the family's table by its name in the source: `{}` and `[]` replaced by layer and expert.

    `{1}` is the layer's number counted from behind the model's last one.
    """
    wanted = {}
    for row in family.tensors:
        if row.target.endswith(".bias") and family.architecture not in BIASED.get(
            row.target.split(".")[-2], (family.architecture,)
        ):
            continue
        layers = sizes.numbers(row.layers)
        for layer in layers if "{" in row.source else layers[:1]:
            name = row.source.format(layer, layer - sizes.layers)
            for expert in row.stacks(sizes.at(layer)) or ("",):
                wanted[name.replace("[]", expert)] = Wanted(row, layer)
    return wanted


def _strip(family: Family[Any], entries: Sequence[Entry]) -> dict[str, Entry]:
    """The tensors by their names without the family's prefix; tensors that no engine needs are left out."""
    prefix, unused = re.compile(family.prefix), re.compile(family.unused)
    companions = {each.name for entry in entries for each in entry.companions}
    found: dict[str, Entry] = {}
    for entry in entries:
        start = prefix.match(entry.name)
        name = entry.name[start.end() :] if start else entry.name
        # BERT's first checkpoints are from before these had their present names.
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if unused.fullmatch(name) or entry.name in companions:
            continue
        if name in found:
            raise MalformedFile(f"`{entry.name}` and `{found[name].name}` are one and the same tensor")
        found[name] = entry
    return found


def _place(entry: Entry, row: Known, layer: int, sizes: Sizes) -> Iterator[TensorPlan]:
    """One tensor for each target.

    A source of three dimensions is a stack of matrices. Targets without transforms share the rows of every matrix:
    from [experts, 2 * rows, columns], gate gets the first half of each expert's rows and up the second half. A target
    with a transform gets the whole of every matrix, and the transform takes the target's values from it.
    """
    sizes, targets = sizes.at(layer), row.targets
    shape = sizes.shape(row.shape)
    if _values(entry.shape) != _values(shape):
        raise MalformedFile(f"tensor `{entry.name}` is {list(entry.shape)} and `config.json` asks for {list(shape)}")
    shared = len(targets) > 1 and not any(target.transform for target in targets)
    if entry.dtype not in UNQUANTIZED and not entry.packing:
        raise UnsupportedModel(
            f"tensor `{entry.name}` is stored as {entry.dtype}, so the model is already quantized",
            hint=WEIGHTS,
        )
    if entry.packing:
        yield from _place_packed(entry, row, layer, sizes)
        return
    skipped = sizes.length(row.skip)
    if skipped:
        size = skipped * prod(shape[1:]) * DTYPES[entry.dtype]
        entry = replace(entry, offset=entry.offset + size, size=entry.size - size)
        shape = (shape[0] - skipped, *shape[1:])
    kept = sizes.length(row.keep)
    if kept:
        entry = replace(entry, size=kept * prod(shape[1:]) * DTYPES[entry.dtype])
        shape = (kept, *shape[1:])
    in_parts = len(targets) > 1
    matrices = shape[0] if in_parts and len(shape) > 2 else 1
    for number, target in enumerate(targets):
        parts = _cut(entry, matrices, number, len(targets)) if shared else _cut(entry, matrices)
        own = (*shape[:-2], shape[-2] // len(targets), shape[-1]) if shared else shape
        own = sizes.shape(target.shape) or own
        yield TensorPlan(
            name=target.name.replace("{}", str(layer)),
            shape=(*((len(row.stacks(sizes)),) if row.stacked else ()), *own),
            dtype=entry.dtype,
            source=entry.name,
            shard=entry.shard,
            offset=parts[-1].offset if shared else entry.offset,
            size=_share(entry.size, number, len(targets)),
            transform=target.transform(sizes) if target.transform else None,
            parts=parts if in_parts or row.stacked else (),
        )


def _values(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without dimensions of the length 1, which code of one kind of model writes now and then."""
    return tuple(length for length in shape if length != 1)


def _place_packed(entry: Entry, row: Known, layer: int, sizes: Sizes) -> Iterator[TensorPlan]:
    """As `_place`, for packed weights: every target gets the whole of every matrix, and keeps its share of the rows.

    Rows and blocks can be moved without a change of their codes; where anything else is done to the values, no type is
    exact.
    """
    assert entry.packing
    shape, targets = sizes.shape(row.shape), row.targets
    parts, companions = _packed_parts(entry, shape[0] if len(shape) > 2 else 1)
    size = entry.size + sum(each.size for piece in entry.pieces or (entry,) for each in piece.companions)
    if sizes.length(row.skip) or (row.keep and sizes.length(row.keep) < shape[0]):
        raise UnsupportedModel(f"rows of `{entry.name}` stay behind, and it is quantized already", WEIGHTS)
    for number, target in enumerate(targets):
        transform = target.transform(sizes) if target.transform else None
        own = sizes.shape(target.shape) or shape
        if transform is None and len(targets) > 1:
            transform = Share(number, len(targets))
            own = sizes.shape(target.shape) or (*shape[:-2], shape[-2] // len(targets), shape[-1])
        exact = entry.packing.exact
        moves = exact is not None and moves_blocks(transform, exact.block)
        yield TensorPlan(
            name=target.name.replace("{}", str(layer)),
            shape=(*((len(row.stacks(sizes)),) if row.stacked else ()), *own),
            dtype=entry.dtype,
            source=entry.name,
            shard=entry.shard,
            offset=entry.offset,
            size=_share(size, number, len(targets)),
            transform=transform,
            parts=parts,
            packing=entry.packing if moves else without_exact(entry.packing),
            companions=companions,
        )


def _packed_parts(entry: Entry, matrices: int) -> tuple[tuple[Part, ...], tuple[tuple[Part, ...], ...]]:
    """The parts of packed weights, and the companions of each."""
    if entry.pieces:
        parts = tuple(_part(each) for each in entry.pieces)
        return parts, tuple(tuple(_part(each) for each in piece.companions) for piece in entry.pieces)
    companions = tuple(zip(*(_cut(each, matrices) for each in entry.companions), strict=True)) or ((),) * matrices
    return _cut(entry, matrices), companions


def _part(entry: Entry) -> Part:
    return Part(entry.shard, entry.offset, entry.size)


def files_of(entries: Iterable[Entry]) -> Iterator[str]:
    """The files that tensors lie in, as often as they do."""
    for entry in entries:
        yield entry.shard
        for piece in entry.pieces:
            yield piece.shard
            yield from (each.shard for each in piece.companions)


def _share(size: int, number: int, count: int) -> int:
    """Bytes of share `number` of `count`: all targets together have as many bytes as the source."""
    return size * (number + 1) // count - size * number // count


def _cut(entry: Entry, matrices: int, number: int = 0, shares: int = 1) -> tuple[Part, ...]:
    """The parts of a tensor of `matrices` matrices: from each matrix share number `number` of `shares` equal shares.

    With 8 experts and `shares` 2, number 1 is the second half of each expert's rows: 8 parts.
    """
    size = entry.size // matrices // shares
    return tuple(
        Part(entry.shard, entry.offset + (matrix * shares + number) * size, size) for matrix in range(matrices)
    )


def _stacked(placed: list[TensorPlan], entries: Sequence[Entry]) -> tuple[TensorPlan, ...]:
    """The tensors with the experts of a layer joined, in the order in which the source completes them."""
    joined: dict[str, TensorPlan] = {}
    for tensor in placed:
        before = joined.pop(tensor.name, None)
        joined[tensor.name] = tensor if before is None else _join(before, tensor)
    files = {shard: number for number, shard in reversed(list(enumerate(files_of(entries))))}
    for name, tensor in joined.items():
        plain = tensor.parts and not tensor.again and tensor.transform is None and not tensor.packing
        if plain and prod(tensor.shape) * DTYPES[tensor.dtype] != tensor.size:
            raise MalformedFile(f"some experts of `{name}` are missing")

    def completed(tensor: TensorPlan) -> tuple[int, int]:
        parts = tensor.parts or (Part(tensor.shard, tensor.offset, tensor.size),)
        return max((files[part.shard], part.offset) for part in parts)

    return tuple(sorted(joined.values(), key=completed))


def _join(before: TensorPlan, tensor: TensorPlan) -> TensorPlan:
    """One tensor with the parts of two that have the same name: experts that the source stores one by one."""
    if before.dtype != tensor.dtype or before.packing != tensor.packing or not before.parts:
        raise UnsupportedModel(f"the experts of `{tensor.name}` are of different types")
    parts, companions = before.parts + tensor.parts, before.companions + tensor.companions
    return replace(tensor, size=before.size + tensor.size, parts=parts, companions=companions)
