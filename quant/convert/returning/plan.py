"""The tensors of a source as its family's table names them, each with the rows of the GGUF file that it is made of.

This is `quant/convert/placing.py` the other way round: the same table, read from the targets to the source. A tensor of
the file of which no tensor of the table is made is an error, so nothing is lost without a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple

from quant.convert.base import HEAD, Family, Known, Sizes, headless
from quant.convert.config import ModelConfig
from quant.convert.placing import Wanted, expand
from quant.convert.planning import shape_of
from quant.convert.pooling import DENSE
from quant.convert.returning.settings import settings, type_of, whole
from quant.errors import MalformedFile, UnsupportedModel
from quant.gguf.architectures import OUTPUT_NEEDED, SCALED
from quant.gguf.header import Header, TensorInfo
from quant.plan import Files, Reversible
from quant.types import QuantType

# Tensors that are computed from the settings.
_COMPUTED = re.compile(r"rope_freqs\.weight|rope_factors_(long|short)\.weight")
# Names that have no prefix in the source: outputs and heads, and Qwen's blocks that predict further tokens.
_BARE = ("classifier", "head.", "lm_head", "mtp.")
# ChatGLM is published under the name of its base class, and its output has the prefix.
_CHATGLM, _CHATGLM_OUTPUT = "ChatGLMModel", "output_layer.weight"
_ORIGINAL = "fetch the source itself"
_OTHER = "is the configuration of another model? `--from` names the folder or repository with the right one"


class ReturnedPiece(NamedTuple):
    """`rows` rows of a tensor of the GGUF file, from row `first` on, and the transform that made them, if any.

    `scale` has a number for each matrix of the tensor, which multiplies it, where the file has one.
    """

    tensor: TensorInfo
    first: int
    rows: int
    transform: Reversible | None
    scale: TensorInfo | None = None

    @property
    def names(self) -> set[str]:
        """The tensors of the file that it is made of."""
        return {self.tensor.name, self.scale.name} if self.scale else {self.tensor.name}


@dataclass(frozen=True)
class ReturnedTensor:
    """A tensor of the source, by its `name` and its `shape` there, rows first.

    It consists of `matrices` equal parts. Each has an equal share of the rows of every piece: share after share, or, of
    pieces whose transforms took their values out of the whole, each value where it was. `blank` rows of zeros stand
    before them: no text makes an engine read these. A single number that stood among the entries is `told`.
    """

    name: str
    shape: tuple[int, ...]
    pieces: tuple[ReturnedPiece, ...] = ()
    matrices: int = 1
    blank: int = 0
    told: float | None = None

    @property
    def elements(self) -> int:
        """Number of values."""
        return prod(self.shape)


@dataclass(frozen=True)
class Return:
    """A model taken back: its tensors, its `config.json`, the type in which the source was published, and remarks."""

    tensors: tuple[ReturnedTensor, ...]
    config: ModelConfig
    dtype: str
    tied: bool | None
    remarks: tuple[str, ...]

    def settings(self, dtype: str) -> dict[str, Any]:
        """`config.json` for weights of this type."""
        return settings(self.config, dtype, self.tied)


def plan_return(files: Files, header: Header) -> Return:
    """The tensors of the model in `header`, by the configuration in `files`; no weight of either is read.

    Raises UnsupportedModel for a model that cannot be taken back, MalformedFile where the configuration is of another
    model than the file.
    """
    given = whole(ModelConfig.read(files, "config.json"))
    config, family, sizes = shape_of(given, files)
    computed = {tensor.name for tensor in family.computed(config, sizes)}
    stored = (tensor for tensor in header.tensors if tensor.name not in computed)
    found = {tensor.name: tensor for tensor in stored if not _COMPUTED.fullmatch(tensor.name)}
    entries = _entries(header, family)
    family = _as_stored(family, config, entries, found)
    blocks = int(entries.get("nextn_predict_layers", 0))
    if blocks:
        sizes = replace(sizes, predicting=frozenset(range(sizes.layers, sizes.layers + blocks)))
    wanted, told = expand(family, sizes), family.told(header.metadata, sizes)
    used = {row.target.replace("{}", str(layer)) for row, layer in wanted.values() if row.switch or row.zeros}
    tied = config.flag("tie_word_embeddings", family.tied)
    if tied and family.architecture in OUTPUT_NEEDED:
        used.add(HEAD)  # the embedding again
        wanted = {name: each for name, each in wanted.items() if each.row.target != HEAD}
    prefix, tensors = _prefix(family, given), []
    rows = _chosen(wanted, found, config, optional=(HEAD,) if tied else ())
    for name, (row, layer) in rows.items():
        returned = _returned(name, row, layer, sizes, found, told)
        if returned:
            pieces = tuple(_scaled(piece, family.architecture, found) for piece in returned.pieces)
            returned = replace(returned, pieces=pieces)
            used = used.union(*(piece.names for piece in returned.pieces))
            tensors.append(returned if _is_bare(row) else replace(returned, name=prefix + name))
    _check_all_used(found, used)
    apart = False if tied and any(row.target == HEAD for row, _ in rows.values()) else None
    return Return(tuple(tensors), given, type_of(given), apart, _remarks(rows, given, sizes, bool(blocks)))


def _check_all_used(found: Mapping[str, TensorInfo], used: set[str]) -> None:
    over = [name for name in found if name not in used]
    if over:
        raise UnsupportedModel(
            f"`{over[0]}` is in the file, and models of this configuration have no place for it", _OTHER
        )


def _entries(header: Header, family: Family[Any]) -> dict[str, Any]:
    """The entries of the family's architecture, without it in front. Raises MalformedFile for a file of another."""
    architecture = str(header.metadata.get("general.architecture"))
    if architecture != family.architecture:
        raise MalformedFile(
            f"`config.json` is of a `{family.architecture}`, and the file of a `{architecture[:40]}`", _OTHER
        )
    start = f"{architecture}."
    return {key.removeprefix(start): value for key, value in header.metadata.items() if key.startswith(start)}


def _as_stored(
    family: Family[Any], config: ModelConfig, entries: Mapping[str, Any], found: Mapping[str, TensorInfo]
) -> Family[Any]:
    """The family as this file has it. Raises UnsupportedModel where the file holds too little of the source."""
    if any(row.target in found for row in DENSE):
        raise UnsupportedModel(
            "it has matrices behind its pooling, which lie in folders of their own in the source", _ORIGINAL
        )
    if "cls.output.weight" in found and not family.encoder and not config.flag("tie_word_embeddings"):
        raise UnsupportedModel("it ranks by two rows of its output, and the file has no other rows of it", _ORIGINAL)
    return headless(family) if "pooling_type" in entries else family


def _chosen(
    wanted: Mapping[str, Wanted], found: Mapping[str, TensorInfo], config: ModelConfig, optional: tuple[str, ...]
) -> dict[str, Wanted]:
    """The rows that the source had: without what its settings took away, and zeros that llama.cpp alone wants.

    One of several ways to store values is chosen: the first whose tensors are all there, among ways that use as many.
    """
    rows: dict[str, Wanted] = {}
    ways: dict[str | None, dict[str, set[str]]] = {}
    for name, each in wanted.items():
        row = each.row
        targets = {target.name.replace("{}", str(each.layer)) for target in row.targets}
        there = targets <= found.keys()
        absent = not there and (not row.required or row.target in optional)
        if row.zeros or absent or (row.switch and not config.flag(row.switch, True)):
            continue
        if row.choice:
            used = ways.setdefault(row.layers, {}).setdefault(row.choice, set())
            used |= targets if there else set()
        rows[name] = each
    best = {layers: max(each, key=lambda way, each=each: len(each[way])) for layers, each in ways.items()}  # type: ignore[misc]
    return {name: each for name, each in rows.items() if each.row.choice in ("", best.get(each.row.layers))}


def _returned(
    name: str,
    row: Known,
    layer: int,
    sizes: Sizes,
    found: Mapping[str, TensorInfo],
    told: Mapping[str, float],
) -> ReturnedTensor | None:
    """One tensor of the source; None for one that no engine reads. Raises MalformedFile."""
    sizes = sizes.at(layer)
    shape = sizes.shape(row.shape)
    if not row.targets:
        return ReturnedTensor(name, shape, told=told[name]) if name in told else None
    blank = sizes.length(row.skip)
    if row.keep and sizes.length(row.keep) < shape[0]:
        raise UnsupportedModel(f"the file lacks the last rows of `{name}`, which stand for pictures and sound", _OTHER)
    kept = (shape[0] - blank, *shape[1:])
    shared = len(row.targets) > 1 and not any(target.transform for target in row.targets)
    pieces = []
    for target in row.targets:
        own = (*kept[:-2], kept[-2] // len(row.targets), kept[-1]) if shared else kept
        own = sizes.shape(target.shape) or own
        stacks = row.stacks(sizes)
        full = (len(stacks), *own) if row.stacked else own
        tensor = found.get(target.name.replace("{}", str(layer)))
        if tensor is None:
            raise MalformedFile(f"the file has no `{target.name.replace('{}', str(layer))}`", _OTHER)
        if tensor.shape[::-1] != full:
            stored = list(tensor.shape[::-1])
            raise MalformedFile(f"`{tensor.name}` is {stored} and `config.json` asks for {list(full)}", _OTHER)
        rows = prod(own) // tensor.columns
        expert = stacks.index(_expert(name, row)) if row.stacked else 0
        pieces.append(ReturnedPiece(tensor, expert * rows, rows, target.transform(sizes) if target.transform else None))
    matrices = shape[0] if len(row.targets) > 1 and len(shape) > 2 else 1
    return ReturnedTensor(name, shape, tuple(pieces), matrices, blank)


def _scaled(piece: ReturnedPiece, architecture: str, found: Mapping[str, TensorInfo]) -> ReturnedPiece:
    """The piece with the scales of its tensor's matrices. Raises MalformedFile."""
    tensor, before = piece.tensor, piece.tensor.name.removesuffix(".weight")
    scale = found.get(f"{before}.scale") if before.split(".")[-1] in SCALED.get(architecture, ()) else None
    if scale and (scale.type is not QuantType.F32 or scale.shape != (tensor.shape[2:] or (1,))):
        raise MalformedFile(f"`{scale.name}` does not fit `{tensor.name}`")
    return piece._replace(scale=scale)


def _expert(name: str, row: Known) -> str:
    """The expert, by its number or name, in a name that `row` makes."""
    before, _, behind = row.source.partition("[]")
    inside = re.compile(re.sub(r"\\\{1?\\\}", r"\\d+", re.escape(before)) + r"(\w+)" + re.escape(behind))
    matched = inside.fullmatch(name)
    assert matched
    return matched[1]


def _is_bare(row: Known) -> bool:
    if row.source == _CHATGLM_OUTPUT:
        return False
    return row.target in (HEAD, "output.bias") or row.source.startswith(_BARE)


def _prefix(family: Family[Any], config: ModelConfig) -> str:
    """The beginning of all names: none in the base class of a model, which has no output of its own."""
    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    first = re.search(r"(\w+)(\\\.|\|\w+\)\\\.)", family.prefix.rpartition("?(")[2] or family.prefix)
    based = name.endswith("Model") and not name.endswith("LMHeadModel") and name != _CHATGLM
    return "" if based else f"{first[1]}." if first else ""


def _remarks(rows: Mapping[str, Wanted], config: ModelConfig, sizes: Sizes, predicting: bool) -> tuple[str, ...]:
    """Clauses on what the folder lacks of the source."""

    def clauses() -> Iterator[str]:
        if any(sizes.length(row.skip) for row, _ in rows.values()):
            yield "the first rows of its positions, which no text uses, are zeros"
        if config.part("text_config").values and config.get("vision_config"):
            yield "it is the language model alone"
        given = config.get("num_nextn_predict_layers") or config.get("mtp_num_hidden_layers")
        if given and not predicting:
            yield "layers that guess further tokens are not in the file"

    return tuple(clauses())
