"""The nodes of a decoder's graph, by the modules of the model that they were made of.

ONNX Runtime GenAI's builder names nodes after modules: `/model/layers.0/attn/qkv_proj/MatMul` is the product of
`model.layers.0.attn.qkv_proj`, whatever passes behind it, such as quantizers and Olive's, do to the weights' names. So
a weight is told by the node that uses it and its place among the inputs. A node or a weight that no rule knows is an
error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import prod

from quant.convert.onnx import matrices
from quant.errors import MalformedFile, UnsupportedModel
from quant.onnx.graph import Graph, Node
from quant.safetensors import Entry
from quant.stream.packed.codes import WEIGHTS

# Operators of activations, positions, masks and caches alone; some have numbers that `settings.py` reads.
_PLAIN = frozenset(
    [
        "Add",
        "And",
        "Cast",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Div",
        "Equal",
        "Expand",
        "FastGelu",
        "Gather",
        "GatherElements",
        "Gelu",
        "Greater",
        "GreaterOrEqual",
        "GroupQueryAttention",
        "Identity",
        "If",
        "IsInf",
        "Less",
        "Mul",
        "MultiHeadAttention",
        "QuickGelu",
        "Range",
        "ReduceMax",
        "ReduceSum",
        "Relu",
        "Reshape",
        "RotaryEmbedding",
        "Shape",
        "Sigmoid",
        "Slice",
        "Softmax",
        "Split",
        "Squeeze",
        "Sub",
        "Tanh",
        "Tile",
        "TopK",
        "Transpose",
        "Unsqueeze",
        "Where",
    ]
)
NORMS = {
    "SimplifiedLayerNormalization": 1,
    "RMSNormalization": 1,
    "LayerNormalization": 1,
    "SkipSimplifiedLayerNormalization": 2,
    "SkipLayerNormalization": 2,
}
"""Operators of norms, and the place of their weights among the inputs."""
_FORWARDED = ("Reshape", "Transpose", "Identity", "Cast")
_LAYER = re.compile(r"(?:model\.)?layers\.(\d+)\.(.+)")
# Weights with more numbers than these are of the model, and not of its masks.
_SMALL = 16


@dataclass(slots=True)
class NodeWeights:
    """Matrices and vectors by module and kind (`weight`, `bias`), and the nodes by module.

    `shared`: the embedding is the output's matrix.
    """

    weights: dict[str, Entry] = field(default_factory=dict)
    nodes: list[tuple[str, Node]] = field(default_factory=list)
    shared: bool = False

    def of(self, *operators: str) -> Iterator[tuple[str, Node]]:
        """The nodes with one of these operators, with their modules."""
        return ((module, node) for module, node in self.nodes if node.operator in operators)


def find(graph: Graph, name: str) -> NodeWeights:
    """All weights of a graph; `name` is the file's. Raises UnsupportedModel for what no rule knows, MalformedFile."""
    reader = _NodeReader(graph)
    for node in graph.nodes:
        reader.take(node)
    reader.share()
    unused = [
        each.name
        for each in graph.tensors.values()
        if each.name not in reader.used and each.dtype not in ("I64", "I32", "BOOL") and prod(each.shape) > _SMALL
    ]
    if unused:
        raise UnsupportedModel(f"`{name}` has weights in places of its own, such as `{unused[0][:80]}`", WEIGHTS)
    return reader.found


def module_of(name: str) -> str:
    """`/model/layers.0/attn/q_norm/SimplifiedLayerNormalization` → `model.layers.0.attn.q_norm`."""
    parts = name.strip("/").split("/")
    return ".".join(parts[:-1] if len(parts) > 1 else parts)


class _NodeReader:
    """Takes the nodes one by one, in their order."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._makers = {output: node for node in graph.nodes for output in node.outputs if output}
        self._gathers: list[Node] = []
        self.found = NodeWeights()
        self.used: set[str] = set()

    def take(self, node: Node) -> None:
        """Note the weights of a node."""
        module, operator = module_of(node.name), node.operator
        self.found.nodes.append((module, node))
        if operator == "MatMulNBits":
            self._add(module, "weight", matrices.product(self._graph, node), node.inputs[1:4])
            if node.input(5):
                self._vector(module, "bias", node, node.input(5))
        elif operator == "MatMul" and self._given(node.input(1)):
            self._add(module, "weight", matrices.turned(self._graph, node), node.inputs[1:2])
        elif operator in NORMS:
            place = NORMS[operator]
            self._vector(module, "weight", node, node.input(place))
            if node.input(place + 1) in self._graph.tensors and operator != "SkipSimplifiedLayerNormalization":
                self._vector(module, "bias", node, node.input(place + 1))
        elif operator == "Add" and any(map(self._given, node.inputs)):
            self._vector(module, "bias", node, next(filter(self._given, node.inputs)))
        elif operator in ("Gather", "GatherBlockQuantized") and "embed_tokens" in module:
            self._gathers.append(node)
        elif operator in ("GroupQueryAttention", "MultiHeadAttention", "RotaryEmbedding"):
            self.used.update(self._tables(node))
        elif operator == "MatMul" or operator not in _PLAIN:
            told = f"`{node.name[:80]}` ({ascii(operator)[1:-1][:40]})"
            raise UnsupportedModel(f"the graph has {told}, which none of the decoders that are known has", WEIGHTS)

    def share(self) -> None:
        """The embedding: a matrix of its own, or the output's, seen through what turns and reshapes it."""
        for node in self._gathers:
            name = node.input(0)
            while name in self._makers and self._makers[name].operator in _FORWARDED:
                name = self._makers[name].input(0)
            if name in self.used:
                self.found.shared = True
                continue
            if node.operator == "Gather":
                entry = matrices.table(self._graph, node, name)
            else:
                entry = matrices.gathered(self._graph, node, name)
            self._add("model.embed_tokens", "weight", entry, [name, *node.inputs[2:4]])

    def _given(self, name: str) -> bool:
        return name in self._graph.tensors and prod(self._graph.tensors[name].shape) > _SMALL

    def _tables(self, node: Node) -> list[str]:
        """The names of a node's tables of rotary angles, which are no weights."""
        return [name for name in node.inputs if len(self._graph.shape(name) or ()) == 2]

    def _vector(self, module: str, kind: str, node: Node, name: str) -> None:
        entry = self._graph.tensors.get(name)
        if entry is None or len(entry.shape) != 1 or entry.dtype not in matrices.FLOATS:
            raise UnsupportedModel(f"`{node.name[:80]}` has weights of a kind that cannot be converted", WEIGHTS)
        self._add(module, kind, entry, [name])

    def _add(self, module: str, kind: str, entry: Entry, names: list[str]) -> None:
        name = f"{module}.{kind}"
        if name in self.found.weights:
            raise MalformedFile(f"two nodes have weights of `{name[:80]}`")
        self.found.weights[name] = replace(entry, name=name)
        self.used.update(names)


def renamed(found: NodeWeights, layers: int, rows: Callable[[str], tuple[int, ...]]) -> dict[str, Entry]:
    """The weights by Hugging Face's names, fused ones split; `rows` tells the rows of each part of a fused matrix.

    Raises UnsupportedModel for a name that is none of a decoder's.
    """
    named: dict[str, Entry] = {}
    for name, entry in found.weights.items():
        module, _, kind = name.rpartition(".")
        place = _LAYER.fullmatch(module)
        if place and place[2] == "final_norm_layernorm" and int(place[1]) == layers:
            module = "model.norm"
        elif place:
            module = f"model.layers.{place[1]}." + _PARTS.get(place[2], place[2])
        before, _, last = module.rpartition(".")
        if last not in _FUSED:
            named[f"{module}.{kind}"] = replace(entry, name=f"{module}.{kind}")
            continue
        counts, first = rows(last), 0
        if sum(counts) != entry.shape[0]:
            raise MalformedFile(f"`{name[:80]}` has {entry.shape[0]} rows, and its parts {list(counts)}", WEIGHTS)
        for part, count in zip(_FUSED[last], counts, strict=True):
            own = f"{before}.{part}.{kind}"
            named[own] = replace(matrices.taken_rows(entry, first, count), name=own)
            first += count
    return named


_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Matrices of several parts, which lie one upon the other."""
_PARTS = {
    **{f"attn.{name}": f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj")},
    **{f"attn.{name}": f"self_attn.{name}" for name in ("q_norm", "k_norm")},
}


def fused(named: dict[str, Entry]) -> dict[str, Entry]:
    """The same with the parts of fused matrices put together, for families that have them so."""
    out = dict(named)
    for name in named:
        before, _, last = name.removesuffix(".weight").rpartition(".")
        for whole, parts in _FUSED.items():
            if last == parts[0] and name.endswith(".weight"):
                members = [f"{before}.{part}.weight" for part in parts]
                if all(each in named for each in members):
                    entry = matrices.joined([out.pop(each) for each in members])
                    out[f"{before}.{whole}.weight"] = replace(entry, name=f"{before}.{whole}.weight")
    return out
