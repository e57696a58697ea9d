"""A folder of ONNX Runtime GenAI, as its builder, Olive and Foundry Local write it: `genai_config.json` and a graph.

The graph is read once, and weights are only ever seen as places in files: the streaming pass reads them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from quant.convert.config import ModelConfig
from quant.convert.onnx.below import Below
from quant.convert.onnx.matrices import in_pieces
from quant.convert.onnx.modules import find, fused, renamed
from quant.convert.onnx.settings import CONFIG, Told, class_of, generation
from quant.errors import MalformedFile, UnsupportedModel
from quant.onnx.graph import read_graph
from quant.plan import Files
from quant.safetensors import INDEX, SINGLE, Entry
from quant.stream.packed.floats import NUMPY
from quant.stream.packed.onnx import Turned

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TIED = "tie_word_embeddings"
# Classes of models that have no output of their own: where an export has one, it is a rounded copy of the embedding.
_ALWAYS_TIED = ("Gemma",)
_SAMPLE = 256  # rows of the embedding that are compared with the output
_SAMPLE_VALUES = 1 << 22  # the most that they may have together


def is_onnx(files: Files) -> bool:
    """Whether the source is a folder of ONNX Runtime GenAI, without the weights as they were trained."""
    names = set(files.names())
    return CONFIG in names and not names & {INDEX, SINGLE}


@dataclass(frozen=True)
class ExportedModel:
    """An exported model: its settings in the terms of `config.json`, and its weights by Hugging Face's names.

    `graphs` are the files that were read to find them. `remarks` are clauses for the user.
    """

    config: ModelConfig
    generation: ModelConfig
    entries: tuple[Entry, ...]
    graphs: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    def fitting(self, names: Iterable[str]) -> tuple[Entry, ...]:
        """The weights for a family whose sources are `names`: matrices put together that it has in one."""
        if not any(name.endswith(("qkv_proj.weight", "gate_up_proj.weight")) for name in names):
            return self.entries
        return tuple(fused({each.name: each for each in self.entries}).values())


def read_export(files: Files) -> ExportedModel:
    """The model in a folder of which `is_onnx` is true. Raises MalformedFile, UnsupportedModel."""
    whole = ModelConfig.read(files, CONFIG)
    model = whole.part("model")
    name = class_of(model)
    decoder = model.part("decoder")
    for part in ("pipeline", "vision", "speech", "embedding", "encoder"):
        if (decoder if part == "pipeline" else model).get(part):
            raise UnsupportedModel(f"`{CONFIG}` has the part `{part}`, and only whole decoders can be converted")
    filename = decoder.get("filename")
    if not isinstance(filename, str):
        raise decoder.wrong("filename", "the name of a file")
    if filename not in files.names():
        raise MalformedFile(f"`{filename[:120]}` is missing, and `{CONFIG}` names it", "fetch all files of the model")
    graph = read_graph(files, filename)
    found = find(graph, filename)
    told = Told(files, model, graph, found)
    own = ModelConfig.read(files, "config.json")
    named = renamed(found, told.layers, told.rows)
    shared, remarks = found.shared or _alike(files, named), []
    if not shared and {EMBEDDING, HEAD} <= named.keys() and name.startswith(_ALWAYS_TIED) and own.flag(TIED, True):
        shared = True
        remarks.append("its output is made of its embedding, which is the same matrix, rounded less")
    if shared and EMBEDDING in named:
        named.pop(HEAD, None)
    config = own.changed({"quantization_config": None, "architectures": [name]}) if own.values else told.config(name)
    config = config.changed({TIED: shared})
    # These are the largest, and no rows of them are moved.
    named |= {each: in_pieces(named[each]) for each in (EMBEDDING, HEAD) if each in named}
    _check_places(named.values())
    entries, graphs = tuple(named.values()), (filename,)
    if isinstance(files, Below):
        entries, graphs = tuple(_moved(each, files) for each in entries), (files.path(filename),)
        remarks += [files.remark] if files.remark else []
    sampling = ModelConfig(CONFIG, generation(model, whole.part("search")))
    return ExportedModel(config, sampling, entries, graphs, tuple(remarks))


def _moved(entry: Entry, files: Below) -> Entry:
    """The same with its files by their names in the whole source."""
    parts, companions = (tuple(_moved(each, files) for each in some) for some in (entry.pieces, entry.companions))
    return replace(entry, shard=files.path(entry.shard), pieces=parts, companions=companions)


def _alike(files: Files, named: dict[str, Entry]) -> bool:
    """Whether the output is the embedding again, turned round: as far as some of its values tell."""
    embedding, head = named.get(EMBEDDING), named.get(HEAD)
    if not embedding or not head or embedding.packing or not isinstance(head.packing, Turned):
        return False
    if embedding.shape != head.shape or embedding.dtype != head.dtype:
        return False
    columns = embedding.shape[1]
    rows = min(_SAMPLE, embedding.shape[0], _SAMPLE_VALUES // columns)
    if not rows:
        return False
    type = np.dtype(NUMPY[embedding.dtype])
    first = np.frombuffer(files.read(embedding.shard, embedding.offset, rows * columns * type.itemsize), type)
    for column in {0, columns // 2, columns - 1}:
        at = head.offset + column * head.shape[0] * type.itemsize
        there = np.frombuffer(files.read(head.shard, at, rows * type.itemsize), type)
        if not np.array_equal(there, first.reshape(rows, columns)[:, column]):
            return False
    return True


def _check_places(entries: Iterable[Entry]) -> None:
    """Raise where two weights have bytes in common: the pass reads each once. Parts of one matrix may be it all."""
    places: dict[tuple[str, int, int], Entry] = {}
    for entry in entries:
        for piece in entry.pieces or (entry,):
            for each in (piece, *piece.companions):
                before = places.setdefault((each.shard, each.offset, each.size), entry)
                turned = isinstance(before.packing, Turned) and isinstance(entry.packing, Turned)
                if before is not entry and not turned:
                    raise MalformedFile(f"`{before.name[:80]}` and `{entry.name[:80]}` lie in the same bytes")
    end, last = ("", 0), ""
    for (shard, offset, size), entry in sorted(places.items(), key=lambda item: item[0]):
        if (shard, offset) < end and end[0] == shard:
            raise MalformedFile(f"`{last[:80]}` and `{entry.name[:80]}` lie in the same bytes")
        end, last = (shard, offset + size), entry.name
