"""The graph of an ONNX file: its nodes with their attributes, and where its tensors lie. Nothing in it is run.

Weights lie in files beside it, of which the graph names place and length, or in the file itself. A file beside it is
named by a path from the graph's own folder; one that leads out of it is refused. Source: `onnx/onnx.proto` of ONNX.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from quant.errors import MalformedFile, UnsupportedModel
from quant.onnx.wire import Field, Wire, as_float, signed
from quant.plan import Files
from quant.pointers import HEAD, check_substance
from quant.safetensors import MAX_DIMENSIONS, Entry

MAX_NODES = 200_000
MAX_TENSORS = 200_000
MAX_LIST = 1 << 16  # numbers of an attribute, or of a tensor that is written as a list of numbers
MAX_SMALL = 1 << 20  # bytes of a tensor that is read while planning
_MAX_DEPTH = 2  # graphs within a graph: the branches of a condition
# Types by their numbers (`TensorProto.DataType`), in the words of safetensors where it has one, and their bits.
_TYPES = {
    1: ("F32", 32), 2: ("U8", 8), 3: ("I8", 8), 4: ("U16", 16), 5: ("I16", 16), 6: ("I32", 32), 7: ("I64", 64),
    9: ("BOOL", 8), 10: ("F16", 16), 11: ("F64", 64), 12: ("U32", 32), 13: ("U64", 64), 16: ("BF16", 16),
    17: ("F8_E4M3", 8), 19: ("F8_E5M2", 8), 21: ("U4", 4), 22: ("I4", 4), 23: ("F4", 4), 24: ("F8_E8M0", 8),
    25: ("U2", 2), 26: ("I2", 2),
}  # fmt: skip
_NUMPY = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I32": "<i4", "I64": "<i8", "U8": "u1", "I8": "i1", "BOOL": "u1"}
_LISTS = (4, 5, 7, 10, 11)  # the fields of a tensor with lists of numbers
_EXTERNAL = 1  # `data_location` of weights in another file

Value = int | float | str | tuple[int, ...]


@dataclass(slots=True)
class Node:
    """A node: its operator, its names, the names of its inputs ("" where one is left out) and outputs.

    `domain` is "" for operators of ONNX itself. `branches` are the graphs of a condition.
    """

    name: str = ""
    operator: str = ""
    domain: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    attributes: dict[str, Value] = field(default_factory=dict)
    branches: dict[str, Graph] = field(default_factory=dict)

    def input(self, place: int) -> str:
        """The name of an input, "" where it is left out."""
        return self.inputs[place] if place < len(self.inputs) else ""

    def number(self, name: str, default: int) -> int:
        """A whole number among the attributes."""
        value = self.attributes.get(name, default)
        return value if isinstance(value, int) else default

    def real(self, name: str, default: float) -> float:
        """A number among the attributes."""
        value = self.attributes.get(name, default)
        return float(value) if isinstance(value, int | float) else default


@dataclass(slots=True)
class Graph:
    """The nodes in their order, and the tensors that come with the file: weights, tables and constants.

    `lists` holds tensors that are written as lists of numbers, which weights never are.
    """

    shard: str
    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, Entry] = field(default_factory=dict)
    lists: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)

    def values(self, files: Files, name: str) -> np.ndarray | None:
        """The numbers of a small tensor, flat; None where there is none, it is large, or of another kind."""
        if name in self.lists:
            return self.lists[name]
        entry = self.tensors.get(name)
        if entry is None or entry.size > MAX_SMALL or entry.dtype not in _NUMPY:
            return None
        return np.frombuffer(files.read(entry.shard, entry.offset, entry.size), _NUMPY[entry.dtype])

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor that comes with the file."""
        return self.tensors[name].shape if name in self.tensors else None


@dataclass(slots=True)
class _TensorFields:
    """The fields of a `TensorProto`: `data` are bytes within the file, `lists` numbers, `outside` another file."""

    name: str = ""
    dims: list[int] = field(default_factory=list)
    kind: int = 0
    place: int = 0
    data: Field | None = None
    lists: list[Field] = field(default_factory=list)
    outside: dict[str, str] = field(default_factory=dict)


def read_graph(files: Files, name: str) -> Graph:
    """The graph of the file `name`. Raises MalformedFile, and UnsupportedModel for a graph with functions."""
    size = files.size(name)
    check_substance(files.read(name, 0, min(size, HEAD)) if size else b"", name)
    wire = Wire(lambda offset, count: files.read(name, offset, count), size, name)
    reader = _GraphReader(wire, files)
    found: Graph | None = None
    for each in wire.fields(0, size):
        if each.number == 25:
            raise UnsupportedModel(f"`{name}` has functions of its own, and only plain graphs can be converted")
        if each.number == 7 and each.has_bytes:
            if found is not None:
                raise wire.broken("it has two graphs")
            found = reader.graph(each, 0)
    if found is None or not found.nodes:
        raise wire.broken("it has no graph")
    _check_order(wire, found)
    return found


def _check_order(wire: Wire, graph: Graph) -> None:
    """Raise where a node needs what comes later, as nodes of a circle do."""
    known = {"", *graph.inputs, *graph.tensors, *graph.lists}
    for node in graph.nodes:
        missing = [each for each in node.inputs if each not in known]
        if missing:
            raise wire.broken(f"node `{node.name[:80]}` needs `{missing[0][:80]}`, which no node before it makes")
        known.update(node.outputs)


class _GraphReader:
    """Reads the messages of one file."""

    def __init__(self, wire: Wire, files: Files) -> None:
        self._wire, self._files = wire, files
        self._names = set(files.names())
        self._folder = wire.name.rpartition("/")[0]
        self._nodes = self._tensors = 0

    def graph(self, message: Field, depth: int) -> Graph:
        """`GraphProto`."""
        if depth > _MAX_DEPTH:
            raise self._wire.broken("its graphs are nested too deeply")
        found = Graph(self._wire.name)
        for each in self._wire.fields(message.begin, message.end):
            if each.number == 1:
                found.nodes.append(self._node(each, found, depth))
            elif each.number == 5:
                self._tensor(each, found)
            elif each.number == 11:
                found.inputs.append(self._named(each))
            elif each.number == 15:
                raise self._wire.broken("it has sparse tensors")
        return found

    def _named(self, message: Field) -> str:
        """The name that a message begins with."""
        for each in self._wire.fields(message.begin, message.end):
            if each.number == 1:
                return self._wire.text(each)
        return ""

    def _node(self, message: Field, graph: Graph, depth: int) -> Node:
        """`NodeProto`; the tensor of a constant joins the graph's tensors."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise self._wire.broken(f"it has more than {MAX_NODES:,} nodes")
        node = Node()
        constants: list[Field] = []
        for each in self._wire.fields(message.begin, message.end):
            if each.number == 1:
                node.inputs.append(self._wire.text(each))
            elif each.number == 2:
                node.outputs.append(self._wire.text(each))
            elif each.number == 3:
                node.name = self._wire.text(each)
            elif each.number == 4:
                node.operator = self._wire.text(each)
            elif each.number == 5:
                constants += self._attribute(each, node, depth)
            elif each.number == 7:
                node.domain = self._wire.text(each)
        if node.operator == "Constant" and node.outputs:
            for constant in constants:
                self._tensor(constant, graph, node.outputs[0])
        return node

    def _attribute(self, message: Field, node: Node, depth: int) -> Iterator[Field]:
        """`AttributeProto`; yields its tensor, where it has one."""
        name = ""
        value: Value | None = None
        numbers: list[int] = []
        for each in self._wire.fields(message.begin, message.end):
            if each.number == 1:
                name = self._wire.text(each)
            elif each.number == 2:
                value = as_float(each.value & 0xFFFFFFFF)
            elif each.number == 3:
                value = signed(each.value)
            elif each.number == 4:
                value = self._wire.payload(each, MAX_LIST).decode(errors="replace")
            elif each.number == 5:
                yield each
            elif each.number == 6:
                node.branches[name or str(len(node.branches))] = self.graph(each, depth + 1)
            elif each.number == 8:
                numbers += self._wire.varints(each, MAX_LIST)
        if value is not None or numbers:
            node.attributes[name] = tuple(numbers) if value is None else value

    def _tensor(self, message: Field, graph: Graph, called: str = "") -> None:
        """`TensorProto`: where its bytes lie, or its numbers, which a list is read for."""
        self._tensors += 1
        if self._tensors > MAX_TENSORS:
            raise self._wire.broken(f"it has more than {MAX_TENSORS:,} tensors")
        told = self._told(message)
        name, dims = called or told.name, tuple(told.dims)
        if told.kind not in _TYPES or len(dims) > MAX_DIMENSIONS or not all(0 <= each < 1 << 48 for each in dims):
            raise self._wire.broken(f"tensor `{name[:80]}` has the type {told.kind} and the shape {list(dims[:9])}")
        if name in graph.tensors or name in graph.lists:
            raise self._wire.broken(f"tensor `{name[:80]}` is there twice")
        dtype, bits = _TYPES[told.kind]
        entry = Entry(name, dtype, dims, self._wire.name, 0, -(-prod(dims) * bits // 8))
        if told.place == _EXTERNAL:
            graph.tensors[name] = self._outside(entry, told.outside)
        elif told.lists:
            self._listed(entry, told.lists, graph)
        else:
            begin, end = (told.data.begin, told.data.end) if told.data else (0, 0)
            if end - begin != entry.size:
                raise self._wire.broken(f"tensor `{name[:80]}` takes {end - begin:,} bytes, and needs {entry.size:,}")
            graph.tensors[name] = replace(entry, offset=begin)

    def _told(self, message: Field) -> _TensorFields:
        """The fields of a `TensorProto`."""
        told = _TensorFields()
        for each in self._wire.fields(message.begin, message.end):
            if each.number == 1:
                told.dims += self._wire.varints(each, MAX_DIMENSIONS)
            elif each.number == 2:
                told.kind = each.value
            elif each.number == 8:
                told.name = self._wire.text(each)
            elif each.number == 9 and each.has_bytes:
                told.data = each
            elif each.number == 13:
                told.outside.update(self._pair(each))
            elif each.number == 14:
                told.place = each.value
            elif each.number in _LISTS:
                told.lists.append(each)
            elif each.number == 3:
                raise self._wire.broken("a tensor is in segments")
        return told

    def _listed(self, entry: Entry, lists: list[Field], graph: Graph) -> None:
        """A tensor that is written as a list: floats lie as they do elsewhere, whole numbers one by one."""
        only = lists[0]
        if len(lists) == 1 and only.has_bytes and only.number in (4, 10) and only.end - only.begin == entry.size:
            graph.tensors[entry.name] = replace(entry, offset=only.begin)
            return
        if any(each.number in (4, 10) and each.has_bytes for each in lists) or prod(entry.shape) > MAX_LIST:
            raise self._wire.broken(f"tensor `{entry.name[:80]}` is a list of numbers, as no weight is")
        numbers: list[float] = []
        for each in lists:
            numbers += [as_float(each.value)] if each.kind == 5 else self._wire.varints(each, MAX_LIST)
        if len(numbers) != prod(entry.shape):
            raise self._wire.broken(f"tensor `{entry.name[:80]}` has {len(numbers)} numbers")
        if entry.dtype in ("F16", "BF16"):  # their bits, in whole numbers
            bits = np.array(numbers, np.uint16)
            graph.lists[entry.name] = (
                bits.view("<f2") if entry.dtype == "F16" else (bits.astype(np.uint32) << 16).view("<f4")
            )
            return
        graph.lists[entry.name] = np.array(numbers, _NUMPY.get(entry.dtype, "<i8"))

    def _pair(self, message: Field) -> Mapping[str, str]:
        """`StringStringEntryProto`."""
        key = value = ""
        for each in self._wire.fields(message.begin, message.end):
            if each.number == 1:
                key = self._wire.text(each)
            elif each.number == 2:
                value = self._wire.text(each)
        return {key: value}

    def _outside(self, entry: Entry, told: Mapping[str, str]) -> Entry:
        """A tensor in a file beside the graph."""
        name, location = f"tensor `{entry.name[:80]}`", told.get("location", "")
        parts = location.split("/")
        if not location or "\\" in location or "\0" in location or ":" in location or {"", ".", ".."} & set(parts):
            raise MalformedFile(
                f"{name} of `{self._wire.name}` lies in `{ascii(location)[1:-1][:80]}`, which is no file of its folder",
                "weights are read from the folder of the model alone",
            )
        shard = f"{self._folder}/{location}" if self._folder else location
        if shard not in self._names:
            raise MalformedFile(
                f"`{shard[:120]}` is missing, and `{self._wire.name}` has weights in it", "fetch all files of the model"
            )
        offset, length = (told.get(key, default) for key, default in (("offset", "0"), ("length", str(entry.size))))
        numbers = [int(each) for each in (offset, length) if each.isascii() and each.isdigit() and len(each) < 19]
        whole = self._files.size(shard)
        if len(numbers) != 2 or numbers[1] != entry.size or numbers[0] + numbers[1] > whole:
            raise MalformedFile(
                f"{name} needs {entry.size:,} bytes, and `{self._wire.name}` says {offset[:20]} and {length[:20]} "
                f"of `{shard[:120]}`, which has {whole:,}",
                "the files may be of different versions of the model; fetch all of one",
            )
        return replace(entry, shard=shard, offset=numbers[0])
