"""Importance of weights: sums of the squares of each column's inputs, in the files of llama.cpp, both forms of them.

The GGUF form has for a matrix NAME the tensors `NAME.in_sum2` (columns × matrices) and `NAME.counts` (1 × matrices), as
`tools/imatrix/imatrix.cpp` writes them. A stack of experts has a count for each. The older form (`.dat`) has means
times a number of calls, and no counts of experts.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quant.errors import BadImportance, MalformedFile
from quant.gguf.header import DEFAULT_ALIGNMENT, align, read_file
from quant.gguf.writer import encode_header, layout
from quant.types import QuantType, Tensor

Floats = NDArray[np.float64]
_KIND, _SUMS, _COUNTS = "imatrix", ".in_sum2", ".counts"
_MAGIC = b"GGUF"
# Bounds on a file of the older form: entries, bytes of a name, and values of an entry.
_ENTRIES, _NAME, _VALUES = 1 << 16, 1 << 10, 1 << 28
_SHOWN = 3
_HINT = "name a file that `llama-imatrix` made with this very model"


class InputSquares(NamedTuple):
    """Inputs of a matrix or a stack: `sums` of squares, float64 `(matrices, columns)`; `counts` of tokens, float64."""

    sums: Floats
    counts: Floats


@dataclass(frozen=True)
class Importance:
    """Squares of inputs by the matrices' names. `datasets` names the texts, `chunk` the tokens of a window."""

    squares: Mapping[str, InputSquares]
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    chunk: int = 512
    name: str = field(default="the importance file", compare=False)

    @classmethod
    def read(cls, path: Path, name: str = "") -> Importance:
        """A file of either form, which messages call `name`. Raises BadImportance, OSError."""
        shown = name or path.name
        with path.open("rb") as file:
            old = file.read(len(_MAGIC)) != _MAGIC
        try:
            found = _read_old(path, shown) if old else _read_gguf(path, shown)
        except MalformedFile as error:
            raise BadImportance(f"`{shown}` is no importance file of llama.cpp: {error}", _HINT) from None
        for matrix, (sums, counts) in found.squares.items():
            if not (np.isfinite(sums).all() and np.isfinite(counts).all()) or (sums < 0).any() or (counts < 0).any():
                raise BadImportance(f"`{shown}`: the squares of `{matrix}` are negative or not finite", _HINT)
        return found

    def write(self, path: Path) -> None:
        """Write the GGUF form, as llama.cpp reads it. Raises OSError."""
        arrays: dict[str, NDArray[np.float32]] = {}
        for name in sorted(self.squares):
            sums, counts = self.squares[name]
            arrays[name + _SUMS], arrays[name + _COUNTS] = sums.astype("<f4"), counts.astype("<f4")[:, None]
        f32 = QuantType.by_name("F32")
        placed = layout(Tensor(name, values.shape[::-1], f32) for name, values in arrays.items())
        entries = {
            "general.type": _KIND,
            "imatrix.datasets": list(self.datasets),
            "imatrix.chunk_count": self.chunks,
            "imatrix.chunk_size": self.chunk,
        }
        kinds = {"imatrix.datasets": "arr[str]", "imatrix.chunk_count": "u32", "imatrix.chunk_size": "u32"}
        with path.open("wb") as file:
            file.write(encode_header(entries, placed, kinds))
            for values in arrays.values():
                data = values.tobytes()
                file.write(data.ljust(align(len(data), DEFAULT_ALIGNMENT), b"\0"))

    def write_old(self, path: Path) -> None:
        """Write the older form. An input that was never seen counts as 1, as llama.cpp writes it. Raises OSError."""
        with path.open("wb") as file:
            file.write(struct.pack("<i", len(self.squares)))
            for name in sorted(self.squares):
                sums, counts = self.squares[name]
                calls = max(1, -(-int(counts.max(initial=0)) // self.chunk))
                seen = counts[:, None] > 0
                values = np.where(seen, sums / np.where(seen, counts[:, None], 1), 1) * calls
                file.write(struct.pack("<i", len(name.encode())) + name.encode())
                file.write(struct.pack("<ii", calls, values.size) + values.astype("<f4").tobytes())
            dataset = (self.datasets[-1] if self.datasets else "").encode()
            file.write(struct.pack("<ii", self.chunks, len(dataset)) + dataset)

    def check(self, tensors: Iterable[Tensor]) -> None:
        """Raise BadImportance unless all matrices are the model's, by their names and their columns."""
        own = {tensor.name: tensor.shape for tensor in tensors if len(tensor.shape) > 1}
        strange = [name for name in self.squares if name not in own]
        if strange or not self.squares:
            shown = ", ".join(f"`{name}`" for name in strange[:_SHOWN]) or "no matrix"
            raise BadImportance(f"`{self.name}` is of another model: it has {shown}", _HINT)
        for name, (sums, _) in self.squares.items():
            columns = own[name][0]
            matrices = own[name][2] if len(own[name]) > 2 else 1
            if sums.size not in (columns, columns * matrices):
                raise BadImportance(
                    f"`{self.name}` is of another model: `{name}` has {sums.size:,} inputs there and {columns:,} here",
                    _HINT,
                )

    @property
    def entries(self) -> dict[str, Any]:
        """Entries of a GGUF file that was made with it: llama.cpp's own, and a digest that no two of them share."""
        digest = hashlib.sha256()
        for name in sorted(self.squares):
            sums, counts = self.squares[name]
            digest.update(name.encode() + sums.tobytes() + counts.tobytes())
        return {
            "quantize.imatrix.file": self.name,
            "quantize.imatrix.dataset": ", ".join(self.datasets),
            "quantize.imatrix.entries_count": len(self.squares),
            "quantize.imatrix.chunks_count": self.chunks,
            "lm.importance": digest.hexdigest()[:32],
        }

    def unrouted(self) -> dict[str, list[int]]:
        """The experts of each stack to which no token was routed; stacks with all of them used are left out."""
        found = {name: np.flatnonzero(counts == 0).tolist() for name, (_, counts) in self.squares.items()}
        return {name: experts for name, experts in found.items() if experts}

    def weights(self, name: str, columns: int, matrices: int = 1) -> NDArray[np.float32] | None:
        """Mean squares of the inputs of a matrix, float32 `(columns,)`, or of a stack, `(matrices, columns)`.

        An expert to which nothing was routed gets the mean of the others. None where the matrix was not seen.
        """
        if name not in self.squares:
            return None
        sums, counts = self.squares[name]
        if sums.size == columns * matrices:
            sums = sums.reshape(matrices, columns)
        if len(counts) != len(sums):
            counts = np.full(len(sums), counts[0])
        seen = counts > 0
        if not seen.any():
            return None
        means = sums / np.where(seen, counts, 1)[:, None]
        means[~seen] = means[seen].mean(axis=0)
        found = np.broadcast_to(means, (matrices, columns)).astype(np.float32)
        return found[0] if matrices == 1 else found


def _read_gguf(path: Path, shown: str) -> Importance:
    header = read_file(path)
    about = header.metadata
    if about.get("general.type") != _KIND:
        raise BadImportance(f"`{shown}` is a GGUF file, and no importance file", _HINT)
    arrays: dict[str, Floats] = {}
    with path.open("rb") as file:
        for tensor in header.tensors:
            if tensor.type.name != "F32":
                raise BadImportance(f"`{shown}`: `{tensor.name}` is no F32", _HINT)
            file.seek(header.data_offset + tensor.offset)
            data = file.read(tensor.nbytes)
            if len(data) != tensor.nbytes:
                raise BadImportance(f"`{shown}` ends within `{tensor.name}`", _HINT)
            arrays[tensor.name] = np.frombuffer(data, "<f4").astype(np.float64).reshape(-1, tensor.shape[0])
    squares = {}
    for name in (name.removesuffix(_SUMS) for name in arrays if name.endswith(_SUMS)):
        sums, counts = arrays[name + _SUMS], arrays.get(name + _COUNTS)
        if counts is None or counts.size not in (1, len(sums)):
            raise BadImportance(f"`{shown}`: `{name}` has no counts that fit its sums", _HINT)
        squares[name] = InputSquares(sums, counts.reshape(-1))
    datasets = about.get("imatrix.datasets")
    numbers = [about.get(f"imatrix.chunk_{what}") for what in ("count", "size")]
    chunks, chunk = (number if isinstance(number, int) else 0 for number in numbers)
    texts = tuple(map(str, datasets)) if isinstance(datasets, list) else ()
    return Importance(squares, texts, chunks, chunk or 512, shown)


def _read_old(path: Path, shown: str) -> Importance:
    data, squares = path.read_bytes(), {}
    broken = BadImportance(f"`{shown}` is no importance file of llama.cpp", _HINT)
    at = 0

    def number(most: int, least: int = 1) -> int:
        nonlocal at
        if at + 4 > len(data):
            raise broken
        (value,) = struct.unpack_from("<i", data, at)
        at += 4
        if not least <= value <= most:
            raise broken
        return int(value)

    for _ in range(number(_ENTRIES)):
        length = number(_NAME)
        name = data[at : at + length].decode("utf-8", "replace")
        at += length
        calls, count = number(1 << 30), number(_VALUES)
        if at + 4 * count > len(data):
            raise broken
        values = np.frombuffer(data, "<f4", count, at).astype(np.float64)
        at += 4 * count
        squares[name] = InputSquares(values[None], np.array([float(calls)]))
    chunks = number(1 << 30, 0) if at < len(data) else 0
    length = number(1 << 20, 0) if at < len(data) else 0
    text = data[at : at + length].decode("utf-8", "replace")
    return Importance(squares, (text,) if text else (), chunks, name=shown)
