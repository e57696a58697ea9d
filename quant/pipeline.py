"""The streaming pass: weights come in once, front to back, and leave as a finished GGUF file.

A thread reads slabs of whole rows ahead, several transform and quantize a slab each, one hashes and writes them in
order. Each stage waits for the next, so memory is bounded by a few slabs whatever the size of the model, and the bytes
depend neither on the number of threads nor on how the source cuts its pieces.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import quant
from quant.ahead import ahead, in_order
from quant.errors import BadValues, MalformedFile
from quant.gguf_writer import Writer, Written, layout
from quant.plan import ModelPlan, Progress, TensorPlan
from quant.recipes import assign, describe
from quant.types import QuantType

# The bytes of a source file, in order, in pieces of any size.
Stream = Callable[[str], Iterable[bytes]]
SLAB = 2 << 20
AHEAD = 2
# BF16 has no numpy type; its bit patterns are the upper halves of float32.
_NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}


class Slab(NamedTuple):
    """Some whole rows of a tensor, (rows, columns), as the source has them; `done` source bytes are read by now."""

    tensor: TensorPlan
    rows: np.ndarray
    done: int


def write(
    plan: ModelPlan,
    level: str,
    stream: Stream,
    path: Path,
    *,
    metadata: Mapping[str, Any] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Written:
    """Quantize the model of `plan` at `level` into a new file at `path`; the source is read once, in order.

    `metadata` are further GGUF entries (where the model comes from, who made the file); `threads` quantize, by default
    one for each CPU; `progress(read, total)` counts source bytes. Raises BadValues naming the tensor that holds NaN or
    infinity, MalformedFile when the source ends too early, and whatever `stream` raises; what lies at `path` is then
    incomplete, and the caller's to remove.
    """
    types = assign(plan, level)
    tensors = layout([(tensor.name, tensor.shape[::-1], types[tensor.name]) for tensor in plan.tensors])
    entries = _arrange({**plan.metadata, **(metadata or {}), **describe(level)})
    workers = threads or os.cpu_count() or 1
    with (
        path.open("wb") as file,
        ahead(_slabs(plan, stream), AHEAD) as slabs,
        ThreadPoolExecutor(workers, "quantize") as quantizers,
        ThreadPoolExecutor(1, "write") as disk,
    ):
        writer = Writer(file, entries, tensors)

        def encode(slab: Slab) -> tuple[memoryview, int]:
            return _encode(slab.tensor, slab.rows, types[slab.tensor.name]), slab.done

        def append(encoded: tuple[memoryview, int]) -> int:
            writer.append(encoded[0])
            return encoded[1]

        for done in in_order(disk, append, in_order(quantizers, encode, slabs, workers + 1), AHEAD):
            if progress:
                progress(done, plan.source_bytes)
        return writer.finish()


def _arrange(entries: dict[str, Any]) -> dict[str, Any]:
    """The architecture, general facts, the rest, and the long tokenizer last, so that the beginning tells the most."""

    def group(key: str) -> int:
        if key == "general.architecture":
            return 0
        return {"general": 1, "lm": 2, "tokenizer": 4}.get(key.split(".")[0], 3)

    return {key: entries[key] for key in sorted(entries, key=group)}


def _slabs(plan: ModelPlan, stream: Stream) -> Iterator[Slab]:
    """Cut the source into slabs, after the tensors that need no source; unused bytes between are read and dropped."""
    done = 0
    for shard, tensors in groupby(plan.tensors, key=lambda tensor: tensor.shard):
        if not shard:
            for tensor in tensors:
                yield Slab(tensor, np.frombuffer(bytearray(tensor.values), "<f4").reshape(-1, tensor.columns), done)
            continue
        with closing(_Feed(shard, stream(shard))) as feed:
            for tensor in tensors:
                feed.skip_to(tensor.offset)
                for rows in _cut(tensor, feed):
                    done += rows.nbytes
                    yield Slab(tensor, rows, done)
            feed.drain()


def _cut(tensor: TensorPlan, feed: _Feed) -> Iterator[np.ndarray]:
    dtype = np.dtype(_NUMPY[tensor.dtype])
    # A vector is one row to the quantizer, but a transform permutes its elements as if they were rows.
    columns = 1 if len(tensor.shape) == 1 and tensor.transform else tensor.columns
    total = tensor.elements // columns
    unit = tensor.transform.rows if tensor.transform else 1
    step = max(1, SLAB // (columns * dtype.itemsize * unit)) * unit
    for start in range(0, total, step):
        rows = np.empty((min(step, total - start), columns), dtype)
        feed.fill(rows.data.cast("B"))
        yield rows


def _encode(tensor: TensorPlan, rows: np.ndarray, type: QuantType) -> memoryview:
    """A slab as the bytes of its type."""
    if tensor.transform:
        rows = tensor.transform.apply(rows)
    if len(tensor.shape) == 1:
        rows = rows.reshape(1, -1)
    if rows.dtype == np.float64:
        rows = rows.astype("<f4")
    try:
        return quant.quantize(rows, type, threads=1).data.cast("B")
    except BadValues:
        hint = "the source is damaged, or its training diverged"
        raise BadValues(f"tensor `{tensor.source}` holds NaN or infinity", hint=hint) from None


class _Feed:
    """One source file as it streams in."""

    def __init__(self, shard: str, pieces: Iterable[bytes]) -> None:
        self._shard = shard
        self._pieces = iter(pieces)
        self._piece = memoryview(b"")
        self._position = 0

    def fill(self, target: memoryview) -> None:
        """The next bytes, as many as `target` holds."""
        filled = 0
        while filled < len(target):
            taken = self._next(len(target) - filled)
            target[filled : filled + len(taken)] = taken
            filled += len(taken)

    def skip_to(self, offset: int) -> None:
        """Drop what lies before byte `offset` of the file."""
        while self._position < offset:
            self._next(offset - self._position)

    def drain(self) -> None:
        """Read to the end, where a source compares the digest."""
        for _ in self._pieces:
            pass

    def close(self) -> None:
        """Let go of the source's iterator."""
        close = getattr(self._pieces, "close", None)
        if close:
            close()

    def _next(self, most: int) -> memoryview:
        while not self._piece:
            piece = next(self._pieces, None)
            if piece is None:
                raise MalformedFile(f"`{self._shard}` ends at byte {self._position}, before its last tensor")
            self._piece = memoryview(piece)
        taken, self._piece = self._piece[:most], self._piece[most:]
        self._position += len(taken)
        return taken
