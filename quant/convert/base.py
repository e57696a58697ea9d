"""What a family of models is, as data, and how a plan is made of it.

A family lists the tensors of its source with their names and shapes in GGUF. A tensor that is not listed is an error,
and so is one that is missing or has another shape: nothing is dropped or guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple

from quant.convert.config import Config
from quant.errors import MalformedFile, UnsupportedModel
from quant.gguf.header import MAX_BLOCKS
from quant.plan import Files, Part, TensorPlan, Transform
from quant.safetensors import DTYPES, Entry

# The types of safetensors that hold weights as they are; others belong to quantized models.
PLAIN = ("F32", "F16", "BF16", "F64")
HEAD = "output.weight"
Sizes = Mapping[str, int]


class Known(NamedTuple):
    """A tensor of a family: names in source and GGUF (`{}` is the layer) and shape, by the names of sizes.

    `result` is the shape in GGUF where it is another, `skip` names the size that says how many first rows stay behind.
    `source` stands without the family's prefix. With `[]` in it, the number of an expert, it stands for as many tensors
    as the size `each` says, which are stacked. A source whose matrices have the rows of two tensors, one after the
    other, has both in `target`, with a space between. `layers` names the sizes that say in which layers the tensor is
    (from, up to), `where` one whose bits say it of every layer. One that is not `required` is in all of these layers or
    in none; one without a `target` stays behind, because nobody reads it. Where the two in `target` do not follow each
    other, both have their own name in `transform`, which takes what belongs to it from each matrix of the source;
    `result` has two then, the sizes of each with spaces between, where they differ.
    """

    source: str
    target: str
    shape: tuple[str, ...]
    required: bool = True
    transform: str = ""
    result: tuple[str, ...] = ()
    skip: str = ""
    layers: tuple[str, str] = ("", "layers")
    where: str = ""
    each: str = "experts"


def _no_tensors(config: Config, sizes: Sizes) -> tuple[TensorPlan, ...]:
    return ()


@dataclass(frozen=True, slots=True)
class Family:
    """Models that are converted alike.

    `classes` are the names in `architectures` of `config.json`, `architecture` is GGUF's. `read_sizes` gives the sizes
    by which `tensors` name their shapes ("layers" among them), `describe` the GGUF entries without the architecture
    in front, `transforms` the changes by the names that `tensors` use, `scaled` those by numbers in `config.json`,
    `computed` the tensors that have no source,
    `picked` those made of so few values that they are read at once. `prefix` matches what a source may have in front of
    the names in `tensors`, `unused` names (without it) that no engine needs. `activations` are those that the engine
    has for the family. An `encoder` makes embeddings and no text; what `ranks` makes a score of two texts. `tied` says
    whether the embedding serves as the output where `config.json` does not say; `instead` gives another family for
    models of the same classes that are otherwise built.
    """

    classes: tuple[str, ...]
    architecture: str
    tensors: tuple[Known, ...]
    read_sizes: Callable[[Config], Mapping[str, int]]
    describe: Callable[[Config, Sizes], dict[str, Any]]
    transforms: Callable[[Sizes], Mapping[str, Transform]] = lambda sizes: {}
    scaled: Callable[[Config, Sizes], Mapping[str, Transform]] = lambda config, sizes: {}
    computed: Callable[[Config, Sizes], tuple[TensorPlan, ...]] = _no_tensors
    prefix: str = r"(model\.)?"
    unused: str = r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"
    activations: tuple[str, ...] = ("silu",)
    picked: Callable[[Files, Iterable[Entry], Config], tuple[TensorPlan, ...]] = lambda files, entries, config: ()
    encoder: bool = False
    ranks: bool = False
    tied: bool = False
    instead: Callable[[Config], Family | None] = lambda config: None


def headless(family: Family) -> Family:
    """The family without its output over the vocabulary, which embeddings have no use for and often leave out."""
    kept = tuple(known for known in family.tensors if known.target not in (HEAD, "output.bias"))
    return replace(family, tensors=kept, unused=rf"{family.unused}|lm_head\.(weight|bias)")


def plan_tensors(family: Family, config: Config, sizes: Sizes, entries: Sequence[Entry]) -> tuple[TensorPlan, ...]:
    """Map every source tensor to its place; raises when one is unknown, missing, of another shape or not plain."""
    wanted = _expand(family, sizes)
    found = _strip(family, entries)
    if config.flag("tie_word_embeddings", family.tied):
        # `transformers` shares the embedding then, and never looks at a head that the file may also hold.
        heads = [name for name, known in wanted.items() if known.target == HEAD]
        for name in heads:
            del wanted[name]
            found.pop(name, None)
    unknown = [entry.name for name, entry in found.items() if name not in wanted]
    if unknown:
        raise UnsupportedModel(
            f"the `{family.architecture}` family has no place for {_listed(unknown)}",
            hint="this is a variant of the architecture that cannot be converted yet",
        )
    there = {(known.source, known.where) for name, known in wanted.items() if name in found}
    missing = [
        name
        for name, known in wanted.items()
        if name not in found and (known.required or (known.source, known.where) in there)
    ]
    if missing:
        raise MalformedFile(f"the weights lack {_listed(missing)}", hint="download the model again")
    transforms = {**family.transforms(sizes), **family.scaled(config, sizes)}
    # In the order of the table, where the experts of a layer are in theirs.
    placed = [
        tensor
        for name, known in wanted.items()
        if name in found and known.target
        for tensor in _place(found[name], known, sizes, transforms)
    ]
    return _stacked(placed, entries)


def split_ahead(family: Family, config: Config, sizes: Sizes, entries: Sequence[Entry]) -> tuple[list[Entry], int]:
    """The tensors without those of the layers behind the last, and the bytes of these.

    Such layers guess at the token after the next (`num_nextn_predict_layers`), and our engine never asks for it.
    """
    layers, more = sizes["layers"], config.get("num_nextn_predict_layers") or config.get("num_mtp_layers") or 0
    behind = re.compile(rf"{family.prefix}(mtp_|layers\.(?P<layer>\d{{1,6}})\.)")

    def is_ahead(entry: Entry) -> bool:
        found = behind.match(entry.name) if type(more) is int and more else None
        return bool(found and (found["layer"] is None or layers <= int(found["layer"]) < layers + more))

    rest = [entry for entry in entries if not is_ahead(entry)]
    return rest, sum(entry.size for entry in entries) - sum(entry.size for entry in rest)


def check_layers(sizes: Sizes) -> None:
    """Raises UnsupportedModel for more layers than any engine has."""
    if sizes["layers"] > MAX_BLOCKS:
        raise UnsupportedModel(f"the model has {sizes['layers']} layers, and at most {MAX_BLOCKS} can be run")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(f"`{name[:80]}`" for name in names[:5]) + more


def _stacked(placed: list[TensorPlan], entries: Sequence[Entry]) -> tuple[TensorPlan, ...]:
    """The tensors with the experts of a layer put together, in the order in which the source completes them."""
    whole: dict[str, TensorPlan] = {}
    for tensor in placed:
        before = whole.pop(tensor.name, None)
        whole[tensor.name] = tensor if before is None else _join(before, tensor)
    files = {entry.shard: number for number, entry in reversed(list(enumerate(entries)))}
    for name, tensor in whole.items():
        plain = tensor.parts and tensor.transform is None and not tensor.scales
        if plain and prod(tensor.shape) * DTYPES[tensor.dtype] != tensor.size:
            raise MalformedFile(f"the experts of `{name}` are not all there")

    def completed(tensor: TensorPlan) -> tuple[int, int]:
        parts = tensor.parts or (Part(tensor.shard, tensor.offset, tensor.size),)
        return max((files[part.shard], part.offset) for part in (*parts, *tensor.scales))

    return tuple(sorted(whole.values(), key=completed))


def _join(before: TensorPlan, tensor: TensorPlan) -> TensorPlan:
    if before.dtype != tensor.dtype or not before.parts:
        raise UnsupportedModel(f"the experts of `{tensor.name}` are of different types")
    parts, scales = before.parts + tensor.parts, before.scales + tensor.scales
    return replace(tensor, size=before.size + tensor.size, parts=parts, scales=scales)


def _strip(family: Family, entries: Sequence[Entry]) -> dict[str, Entry]:
    """The tensors by their names without the family's prefix, those left out that are of no use."""
    prefix, unused = re.compile(family.prefix), re.compile(family.unused)
    scales = {entry.scales.name for entry in entries if entry.scales}
    found: dict[str, Entry] = {}
    for entry in entries:
        start = prefix.match(entry.name)
        name = entry.name[start.end() :] if start else entry.name
        # BERT's first checkpoints are from before these had their present names.
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if unused.fullmatch(name) or entry.name in scales:
            continue
        if name in found:
            raise MalformedFile(f"`{entry.name}` and `{found[name].name}` are one and the same tensor")
        found[name] = entry
    return found


def _expand(family: Family, sizes: Sizes) -> dict[str, Known]:
    """Every tensor that the family knows, with layer and expert filled in, by its name in the source."""
    wanted = {}
    for known in family.tensors:
        first, end = (sizes[name] if name else 0 for name in known.layers)
        layers = [layer for layer in range(first, end) if not known.where or sizes[known.where] >> layer & 1]
        for layer in layers if "{}" in known.source else layers[:1]:
            for expert in range(sizes[known.each]) if "[]" in known.source else (0,):
                source = known.source.format(layer).replace("[]", str(expert))
                wanted[source] = known._replace(target=known.target.replace("{}", str(layer)))
    return wanted


def _place(entry: Entry, known: Known, sizes: Sizes, transforms: Mapping[str, Transform]) -> Iterator[TensorPlan]:
    shape = tuple(sizes[name] for name in known.shape)
    if entry.shape != shape:
        raise MalformedFile(f"tensor `{entry.name}` is {list(entry.shape)} and `config.json` asks for {list(shape)}")
    if entry.dtype not in PLAIN and not (entry.scales and (known.transform or " " not in known.target)):
        raise UnsupportedModel(
            f"tensor `{entry.name}` is stored as {entry.dtype}, so the model is already quantized",
            hint="use the repository with the original weights",
        )
    # Of two tensors each may have its own, its sizes with spaces between.
    results = [tuple(map(sizes.__getitem__, each.split())) for each in known.result if " " in each]
    result = shape if results or not known.result else tuple(sizes[name] for name in known.result)
    names = known.transform.split() if " " in known.target else [known.transform] * bool(known.transform)
    plan = TensorPlan(known.target, result, entry.dtype, entry.name, entry.shard)
    if entry.scales or len(names) > 1:
        made = _take(plan, known, entry, [transforms[name] for name in names], results)
        yield from (_stack(each, sizes[known.each]) if "[]" in known.source else each for each in made)
        return
    plan = replace(plan, transform=transforms[known.transform] if known.transform else None)
    skipped = 0
    if known.skip:
        skipped = sizes[known.skip] * shape[-1] * DTYPES[entry.dtype]
        plan = replace(plan, shape=(shape[0] - sizes[known.skip], *shape[1:]))
    offset, size = entry.offset + skipped, entry.size - skipped
    if "[]" in known.source:
        part = Part(entry.shard, offset, size)
        yield _stack(replace(plan, offset=offset, size=size, parts=(part,)), sizes[known.each])
    elif " " in known.target:
        yield from _halves(plan, known, offset, size)
    else:
        yield replace(plan, offset=offset, size=size)


def _stack(plan: TensorPlan, count: int) -> TensorPlan:
    return replace(plan, shape=(count, *plan.shape))


def _take(
    plan: TensorPlan, known: Known, entry: Entry, transforms: list[Transform], shapes: list[tuple[int, ...]]
) -> Iterator[TensorPlan]:
    """Tensors of which each is made of all matrices of the source, and their scales, by its own transform."""
    matrices = entry.shape[0] if len(entry.shape) > 2 else 1
    scales = _cut(entry.scales, matrices) if entry.scales else ()
    targets = known.target.split()
    for number, name in enumerate(targets):
        size = entry.size + (entry.scales.size if entry.scales else 0)
        yield replace(
            plan,
            name=name,
            shape=shapes[number] if shapes else plan.shape,
            offset=entry.offset,
            # So that all together have the bytes of the source.
            size=size * (number + 1) // len(targets) - size * number // len(targets),
            transform=transforms[number] if transforms else None,
            parts=_cut(entry, matrices),
            scales=scales,
            stored=entry.shape[-1] if scales else 0,
        )


def _cut(entry: Entry, count: int) -> tuple[Part, ...]:
    size = entry.size // count
    return tuple(Part(entry.shard, entry.offset + number * size, size) for number in range(count))


def _halves(plan: TensorPlan, known: Known, offset: int, size: int) -> Iterator[TensorPlan]:
    """Two tensors, whose rows follow each other in every matrix of the source."""
    matrices = plan.shape[0] if len(plan.shape) > 2 else 1
    step = size // matrices // 2
    shape = (*plan.shape[:-2], plan.shape[-2] // 2, plan.shape[-1])
    for number, name in enumerate(known.target.split()):
        starts = [offset + (2 * matrix + number) * step for matrix in range(matrices)]
        parts = tuple(Part(plan.shard, start, step) for start in starts)
        yield replace(plan, name=name, shape=shape, offset=starts[-1], size=step * matrices, parts=parts)
