"""PEFT adapters to GGUF: planned from headers, by the table of tensors and the transforms of the base's family.

The file has two tensors for each tensor of the base that changes: `NAME.lora_a`, (rank, inputs), and `NAME.lora_b`,
(outputs, rank). A stack of experts has a stack of each. llama.cpp adds scale · B·A·x to the product of the weight and
the input x. The scale is `adapter.lora.alpha` / rank; where a module's own scale differs from that, B is multiplied.
Rows of an embedding are looked up: its A is stored as (tokens, rank). Source: `src/llama-adapter.cpp`, `build_lora_mm`
and `build_inp_embd` in `src/llama-graph.cpp` of llama.cpp.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple

from quant.convert.adapters.experts import FusedExperts, fused_experts, is_experts
from quant.convert.adapters.pairs import Pair, read_pairs
from quant.convert.adapters.settings import CONFIG, WEIGHTS, AdapterSettings, read_settings, require_weights
from quant.convert.adapters.turning import of_columns, of_rows, scaled
from quant.convert.base import EMBEDDING, HEAD, Family, Known, Sizes, Target
from quant.convert.placing import Wanted, expand
from quant.convert.planning import read_shape
from quant.convert.transforms import Transpose
from quant.convert.wrappers import BESIDE
from quant.errors import MalformedFile, UnsupportedModel
from quant.gguf.adapter import ALPHA, KIND, LORA, TYPE
from quant.gguf.architectures import OUTPUT_NEEDED, UNADAPTED
from quant.plan import Files, ModelPlan, Part, TensorPlan, Transform
from quant.safetensors import Entry, read_header
from quant.types import role_of

# A part of names in transformers 5, and the same in the files of models.
_RENAMED = (".mlp.", ".block_sparse_moe.")


class _Member(NamedTuple):
    """A pair in its place: number `expert` of a stack, 0 where there is none, and its scale as PEFT has it.

    `sizes` are its layer's.
    """

    pair: Pair
    row: Known
    expert: int
    scale: float
    sizes: Sizes


@dataclass(frozen=True)
class BaseShape:
    """A base as `config.json` alone tells it: its family, its sizes, whether its output is its embedding."""

    family: Family[Any]
    sizes: Sizes
    tied: bool

    @classmethod
    def of(cls, base: Files) -> BaseShape:
        """The shape of the model in `base`, of which only small files are read."""
        config, family, sizes = read_shape(base)
        return cls(family, sizes, config.flag("tie_word_embeddings", family.tied))


def plan_adapter(files: Files, shape: BaseShape, settings: AdapterSettings | None = None) -> ModelPlan:
    """The plan of the GGUF file of the adapter in `files`, for a base of this shape; only headers are read.

    Raises UnsupportedModel for what a GGUF adapter cannot hold or llama.cpp would pass over, MalformedFile where the
    adapter contradicts itself or is for another base.
    """
    settings = settings or read_settings(files)
    require_weights(files)
    entries = read_header(lambda at, count: files.read(WEIGHTS, at, count), files.size(WEIGHTS), WEIGHTS)
    pairs, beside = _of_language(read_pairs(entries), entries)
    wanted = expand(shape.family, shape.sizes)
    fused = fused_experts(pairs, wanted, shape.sizes)
    taken = {each.pair.module for each in fused}
    placed = _place([pair for pair in pairs if pair.module not in taken], wanted, shape, settings)
    scales = [(settings.scale(each.parameter, each.rank), each) for each in fused]
    alpha = _common_alpha(placed, [scale * each.rank for scale, each in scales])
    tensors = [tensor for name, members in placed.items() for tensor in _tensors(name, members, alpha)]
    tensors += [tensor for scale, each in scales for tensor in _of_experts(each, scale * each.rank / alpha)]
    metadata = {
        "general.architecture": shape.family.architecture,
        "general.type": TYPE,
        KIND: LORA,
        ALPHA: alpha,
    }
    plan = ModelPlan(shape.family.architecture, metadata, tuple(sorted(tensors, key=_completed)), (WEIGHTS,))
    return plan if not beside else ModelPlan(plan.architecture, metadata, plan.tensors, plan.shards, left_out=beside)


def _of_language(pairs: list[Pair], entries: Sequence[Entry]) -> tuple[list[Pair], dict[str, int]]:
    """The pairs of the language model, and the bytes of the parts that see or hear."""
    outside = re.compile(rf"(?:model\.)?({'|'.join(BESIDE)})(?:\.|$)")
    left_out: Counter[str] = Counter()
    language = []
    for pair in pairs:
        if found := outside.match(pair.module):
            left_out[BESIDE[found[1]]] += pair.down.size + pair.up.size
        else:
            language.append(pair)
    if not language:
        raise UnsupportedModel(f"the adapter changes {' and '.join(left_out)} alone, which `lm` does not run")
    return language, dict(left_out)


def _of_experts(fused: FusedExperts, factor: float) -> Iterable[TensorPlan]:
    """The tensors of an adapter for the experts of a layer, two for each stack."""
    count, rank = len(fused.targets), fused.rank
    first, second = (fused.pair.up, fused.pair.down) if fused.across else (fused.pair.down, fused.pair.up)
    for number, (name, taken) in enumerate(fused.targets):
        down, up = fused.matrices(taken)
        yield _tensor(f"{name}.lora_a", (fused.experts, rank, fused.inputs), [first], down, number, count)
        stack = (fused.experts, taken.count, rank)
        yield _tensor(f"{name}.lora_b", stack, [second], scaled(up, factor), number, count)


def _place(
    pairs: Iterable[Pair], wanted: dict[str, Wanted], shape: BaseShape, settings: AdapterSettings
) -> dict[str, list[_Member]]:
    """The pairs by the tensors of the base that they change; a source with several targets changes each."""
    prefix = re.compile(shape.family.prefix)
    placed: dict[str, list[_Member]] = defaultdict(list)
    for pair in pairs:
        found = prefix.match(pair.module)
        name = (pair.module[found.end() :] if found else pair.module) + ".weight"
        name = name if name in wanted else name.replace(*_RENAMED)
        if name not in wanted:
            raise _unknown(pair.module, shape)
        row, layer = wanted[name]
        sizes = shape.sizes.at(layer)
        _check(pair, row, shape, sizes)
        scale = settings.scale(pair.module, pair.rank)
        if not isfinite(scale):
            raise MalformedFile(f"`{CONFIG}` gives `{pair.module[:80]}` a scale that is no number")
        for target in row.targets:
            place = target.name.replace("{}", str(layer))
            if role_of(place) in UNADAPTED.get(shape.family.architecture, ()):
                raise UnsupportedModel(
                    f"the adapter changes `{pair.module[:80]}`, and llama.cpp's `{shape.family.architecture}` passes "
                    f"over changes of it (`{place}`)",
                    "merge the adapter into its base instead",
                )
            placed[place].append(_Member(pair, row, _expert(wanted, name, row, layer), scale, sizes))
    for name, members in placed.items():
        _check_stack(name, members)
    return placed


def _unknown(module: str, shape: BaseShape) -> UnsupportedModel:
    """The error for a module that the base does not have by this name."""
    shown, architecture = ascii(module)[1:-1][:80], shape.family.architecture
    if is_experts(module):
        return UnsupportedModel(
            f"the adapter changes `{shown}`, all experts of a layer at once, in shapes that `{architecture}` does not "
            "have",
            "merge the adapter into its base instead",
        )
    return UnsupportedModel(
        f"the adapter changes `{shown}`, which a `{architecture}` of {shape.sizes.layers} layers does not have",
        "is it for another model? name its base with `--base`",
    )


def _expert(wanted: dict[str, Wanted], name: str, row: Known, layer: int) -> int:
    """The number of an expert in its stack."""
    if not row.stacked:
        return 0
    before, _, after = row.source.format(layer).partition("[]")
    return int(name[len(before) : len(name) - len(after)])


def _check(pair: Pair, row: Known, shape: BaseShape, sizes: Sizes) -> None:
    """Raise where a pair does not change the matrix of this row as B·A."""
    module = f"`{ascii(pair.module)[1:-1][:80]}`"
    target = row.targets[0] if row.targets else None
    if pair.embedding != (row.target == EMBEDDING):
        kind = "an embedding" if pair.embedding else "a matrix"
        raise UnsupportedModel(f"the adapter changes {module} as {kind}, and it is none")
    tied = shape.tied and shape.family.architecture not in OUTPUT_NEEDED
    if tied and row.target == HEAD:
        raise UnsupportedModel(f"the adapter changes {module}, and in its base the output is the embedding")
    if tied and row.target == EMBEDDING:
        raise UnsupportedModel(
            f"the adapter changes {module}, which in its base is the output as well: llama.cpp cannot change one alone"
        )
    length = sizes.shape(row.shape)
    if target is None or len(length) != 2 or sizes.length(row.skip):
        raise UnsupportedModel(f"the adapter changes {module}, which is no matrix that llama.cpp multiplies with")
    outputs, inputs = length
    if isinstance(_transform(target, sizes), Transpose) or pair.embedding:
        outputs, inputs = inputs, outputs
    if (pair.up.shape[0], pair.down.shape[1]) != (outputs, inputs):
        raise MalformedFile(
            f"the adapter is for another base: it changes {module} as {pair.up.shape[0]} by {pair.down.shape[1]}, and "
            f"there it is {outputs} by {inputs}",
            "name its base with `--base`",
        )


def _check_stack(name: str, members: list[_Member]) -> None:
    """Raise unless a stack of experts is whole, of one rank and one scale."""
    row, count = members[0].row, len(members)
    if not row.stacked:
        return
    wanted = members[0].sizes.length(row.stack)
    if count != wanted:
        raise UnsupportedModel(f"the adapter changes {count} of {wanted} experts of `{name}`, and llama.cpp takes all")
    kinds = {(each.pair.rank, each.scale, each.pair.down.dtype, each.pair.up.dtype) for each in members}
    if len(kinds) > 1:
        raise UnsupportedModel(f"the adapter changes the experts of `{name}` with several ranks or scales")


def _common_alpha(placed: dict[str, list[_Member]], more: list[float]) -> float:
    """The alpha of the file: the commonest of scale · rank, so that few matrices must be multiplied."""
    counts = Counter(each.scale * each.pair.rank for members in placed.values() for each in members)
    counts.update(more)
    return max(counts, key=lambda alpha: counts[alpha])


def _tensors(name: str, members: list[_Member], alpha: float) -> Iterable[TensorPlan]:
    """The two tensors of an adapter for one tensor of its base."""
    members = sorted(members, key=lambda member: member.expert)
    pair, row, _, scale, sizes = members[0]
    rank, targets = pair.rank, row.targets
    number = next(at for at, each in enumerate(targets) if re.fullmatch(each.name.replace("{}", r"\d+"), name))
    shared = len(targets) > 1 and not any(each.transform for each in targets)
    up = scaled(_turned(name, targets[number], sizes, rank), scale * rank / alpha)
    downs, ups = [each.pair.down for each in members], [each.pair.up for each in members]
    outputs = _outputs(targets[number], row, sizes)
    if shared or pair.embedding:
        outputs = pair.up.shape[0] // len(targets)
    stack = (len(members),) if row.stacked else ()
    if pair.embedding:
        tokens = pair.down.shape[1]
        yield _tensor(f"{name}.lora_a", (tokens, rank), downs, Transpose(tokens, rank), number, len(targets))
    else:
        turn = of_columns(_transform(targets[number], sizes))
        yield _tensor(f"{name}.lora_a", (*stack, rank, pair.down.shape[1]), downs, turn, number, len(targets))
    yield _tensor(f"{name}.lora_b", (*stack, outputs, rank), ups, up, number, len(targets), shared=shared)


def _transform(target: Target, sizes: Sizes) -> Transform | None:
    return target.transform(sizes) if target.transform else None


def _turned(name: str, target: Target, sizes: Sizes, rank: int) -> Any:
    try:
        return of_rows(_transform(target, sizes), rank)
    except LookupError:
        raise UnsupportedModel(
            f"the adapter changes what becomes `{name}`, whose rows and columns are rearranged in GGUF",
            "merge the adapter into its base instead",
        ) from None


def _outputs(target: Target, row: Known, sizes: Sizes) -> int:
    """The rows of the target's matrix, one for a vector."""
    shape = sizes.shape(target.shape or row.shape)
    return shape[-2] if len(shape) > 1 else 1


def _tensor(
    name: str, shape: tuple[int, ...], sources: list[Entry], turn: Any, number: int, count: int, *, shared: bool = False
) -> TensorPlan:
    """A tensor of the `sources`, of which `count` tensors are made and this is number `number`.

    `shared`: the tensors share the rows of each source equally; else each is made of all rows.
    """
    whole = sum(entry.size for entry in sources)
    parts = [
        Part(entry.shard, entry.offset + number * (entry.size // count), entry.size // count)
        if shared
        else Part(entry.shard, entry.offset, entry.size)
        for entry in sources
    ]
    alone = len(parts) == 1 and (shared or count == 1)
    return TensorPlan(
        name=name,
        shape=shape,
        dtype=sources[0].dtype,
        source=sources[0].name,
        shard=WEIGHTS,
        offset=parts[-1].offset,
        # All tensors together have as many bytes as their sources.
        size=whole * (number + 1) // count - whole * number // count,
        transform=turn,
        parts=() if alone else tuple(parts),
    )


def _completed(tensor: TensorPlan) -> int:
    """The place in the file at which the last of a tensor has come."""
    parts = tensor.parts or (Part(tensor.shard, tensor.offset, tensor.size),)
    return max(part.offset for part in parts)
