"""The weights of a node as an entry of a source: codes in blocks, floats that are turned round, rows of a table.

Source: `ContribOperators.md` of ONNX Runtime (MatMulNBits, GatherBlockQuantized).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from quant.errors import MalformedFile, UnsupportedModel
from quant.onnx.graph import Graph, Node
from quant.safetensors import Entry
from quant.stream.packed.codes import WEIGHTS, exact_type
from quant.stream.packed.onnx import PackedBits, Turned

FLOATS = ("F32", "F16", "BF16")
_SCALES = ("F32", "F16", "BF16")
PIECE = 1 << 25  # values of a piece; an output over 128,000 tokens has half a billion
_BITS = (2, 4, 8)
_BLOCKS = (16, 32, 64, 128, 256)


def table(graph: Graph, node: Node, name: str) -> Entry:
    """The rows that a Gather takes: a float matrix as it lies."""
    entry = _tensor(graph, node, name)
    if len(entry.shape) != 2 or not entry.size or entry.dtype not in FLOATS:
        raise _odd(node, f"a table {list(entry.shape)} of {entry.dtype}")
    return entry


def turned(graph: Graph, node: Node) -> Entry:
    """The float matrix of a MatMul, [columns, rows]."""
    entry = _tensor(graph, node, node.input(1))
    if len(entry.shape) != 2 or not entry.size or entry.dtype not in FLOATS:
        raise _odd(node, f"a matrix {list(entry.shape)} of {entry.dtype}")
    columns, rows = entry.shape
    return replace(entry, shape=(rows, columns), packing=Turned(columns, entry.dtype), pieces=(entry,))


def product(graph: Graph, node: Node) -> Entry:
    """The matrix of a MatMulNBits, [rows, columns]. Raises UnsupportedModel for layouts of one kind of GPU."""
    if node.number("weight_prepacked", 0) != 0:
        raise UnsupportedModel(
            f"the weights of `{node.name[:80]}` are laid out for one kind of GPU (`weight_prepacked`)", WEIGHTS
        )
    if node.input(4):
        raise UnsupportedModel(f"`{node.name[:80]}` has its columns out of order (`g_idx`)", WEIGHTS)
    rows, columns = node.number("N", 0), node.number("K", 0)
    return blocked(graph, node, (node.input(1), node.input(2), node.input(3)), (rows, columns))


def gathered(graph: Graph, node: Node, weights: str) -> Entry:
    """The table of a GatherBlockQuantized, [rows, columns]; `weights` is the tensor of its codes."""
    entry = _tensor(graph, node, weights)
    axes = node.number("gather_axis", 0), node.number("quantize_axis", 1)
    bits = 4 if entry.dtype in ("U4", "I4") else node.number("bits", 4)
    if axes != (0, 1) or len(entry.shape) < 2 or bits not in _BITS:
        raise _odd(node, f"a table {list(entry.shape)} of {entry.dtype}, quantized along axis {axes[1]}")
    rows, bytes = entry.shape[0], entry.size // entry.shape[0] if entry.shape[0] else 0
    return blocked(graph, node, (weights, node.input(2), node.input(3)), (rows, bytes * 8 // bits), bits)


def blocked(graph: Graph, node: Node, names: Sequence[str], shape: tuple[int, int], bits: int | None = None) -> Entry:
    """Codes, scales and perhaps zeros, as one matrix of this shape."""
    weights, scales = (_tensor(graph, node, name) for name in names[:2])
    zeros = _tensor(graph, node, names[2]) if names[2] else None
    bits = node.number("bits", 4) if bits is None else bits
    block, (rows, columns) = node.number("block_size", 0), shape
    if bits not in _BITS or block not in _BLOCKS or rows < 1 or columns < 1:
        raise _odd(node, f"a matrix [{rows}, {columns}] with `bits` {bits}, `block_size` {block}")
    own = "" if zeros is None else "U8" if zeros.dtype in ("U8", "U4") else zeros.dtype
    packing = PackedBits(columns, block, bits, scales.dtype, own, weights.dtype == "I4", None)
    groups = packing.groups
    zero_bytes = rows * (-(-groups * bits // 8)) if own == "U8" else scales.size
    if zeros and (packing.signed or (zeros.dtype != "U8" and own == "U8" and groups * bits % 8)):
        raise _odd(node, f"zeros of {zeros.dtype} in {groups} blocks")
    fits = weights.dtype in ("U8", "U4", "I4") and weights.size == rows * packing.row_bytes
    fits = fits and scales.dtype in _SCALES and prod(scales.shape) == rows * groups
    if not fits or (zeros and (own not in ("U8", scales.dtype) or zeros.size != zero_bytes)):
        raise MalformedFile(f"`{node.name[:80]}` has weights, scales and zeros that do not fit each other", WEIGHTS)
    if not zeros and weights.dtype == "U4":
        raise _odd(node, "unsigned codes without zeros")
    exact = exact_type(bits, zeros is None, groups * block, groups) if columns % 32 == 0 else None
    companions = (scales, zeros) if zeros else (scales,)
    packing = replace(packing, exact=exact)
    piece = replace(weights, companions=companions)
    return replace(weights, shape=shape, dtype=packing.name, packing=packing, pieces=(piece,))


def taken_rows(entry: Entry, first: int, count: int) -> Entry:
    """`count` rows of a matrix or of a vector, from number `first` on; they lie together."""
    rows = entry.shape[0]
    shape = (count, *entry.shape[1:])
    if isinstance(entry.packing, Turned):
        packing = replace(entry.packing, first=entry.packing.first + first, rows=count)
        return replace(entry, shape=shape, packing=packing, size=_share(entry.size, first, count, rows))
    if entry.packing is None:
        return _cut(replace(entry, shape=shape), first, count, rows)
    (piece,) = entry.pieces
    companions = tuple(_cut(each, first, count, rows) for each in piece.companions)
    piece = replace(_cut(piece, first, count, rows), companions=companions)
    return replace(entry, shape=shape, size=piece.size, pieces=(piece,))


def in_pieces(entry: Entry) -> Entry:
    """A large matrix of codes as pieces of its rows: the pass takes a piece at a time, and each becomes float32."""
    rows, step = entry.shape[0], max(1, PIECE // entry.shape[-1])
    if not isinstance(entry.packing, PackedBits) or rows <= step:
        return entry
    cuts = ((first, min(step, rows - first)) for first in range(0, rows, step))
    return replace(entry, pieces=tuple(taken_rows(entry, first, count).pieces[0] for first, count in cuts))


def joined(parts: Sequence[Entry]) -> Entry:
    """One matrix of the rows of several. Raises UnsupportedModel where these are stored in different ways."""
    first = parts[0]
    if isinstance(first.packing, Turned) and all(each.pieces == first.pieces for each in parts):
        # They were taken from one matrix, which they make up again.
        first = replace(first, packing=replace(first.packing, first=0, rows=0))
        parts = [first, *(replace(each, packing=first.packing, pieces=()) for each in parts[1:])]
    if any(each.packing != first.packing or each.shape[1:] != first.shape[1:] for each in parts):
        raise UnsupportedModel(
            f"`{first.name[:80]}` and its neighbours become one matrix, and are stored in different ways", WEIGHTS
        )
    shape = (sum(each.shape[0] for each in parts), *first.shape[1:])
    pieces = tuple(piece for each in parts for piece in each.pieces)
    return replace(first, shape=shape, size=sum(each.size for each in parts), pieces=pieces)


def _share(size: int, first: int, count: int, rows: int) -> int:
    """Bytes of some rows, where all rows are read for each of several: together they have the bytes once."""
    return size * (first + count) // rows - size * first // rows


def _cut(entry: Entry, first: int, count: int, rows: int) -> Entry:
    width = entry.size // rows
    return replace(entry, offset=entry.offset + first * width, size=count * width)


def _tensor(graph: Graph, node: Node, name: str) -> Entry:
    if name not in graph.tensors:
        raise _odd(node, f"weights that do not come with the file (`{ascii(name)[1:-1][:80]}`)")
    return graph.tensors[name]


def _odd(node: Node, what: str) -> UnsupportedModel:
    return UnsupportedModel(f"`{node.name[:80]}` ({node.operator[:40]}) has {what}, which cannot be converted", WEIGHTS)
