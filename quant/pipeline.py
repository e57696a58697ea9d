"""The streaming pass: weights come in once, front to back, and leave as a finished GGUF file.

A thread reads slabs of whole rows ahead, several transform and quantize a slab each, and the calling one writes them
in order as soon as they are ready. Each stage waits for the next, so memory is bounded by a few slabs whatever the size
of the model, and the bytes depend neither on the number of threads nor on how the source cuts its pieces. After each
slab the output is told the mark from which the pass could go on: the slab's end is an exact place in the source, since
only whole slabs are read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

import quant
from quant.ahead import ahead
from quant.errors import BadValues
from quant.gguf import DEFAULT_ALIGNMENT, align
from quant.gguf_writer import Writer, encode_header, layout
from quant.plan import ModelPlan, Progress, TensorPlan
from quant.recipes import assign, describe
from quant.streams import Mark, Open, Output, Reader
from quant.types import QuantType

SLAB = 2 << 20
AHEAD = 2  # slabs that wait beyond those that threads have in hand
# BF16 has no numpy type; its bit patterns are the upper halves of float32.
_NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}
_BEGINNING = Mark(0, 0, "")
_NOTHING = np.empty((0, 0))


class Slab(NamedTuple):
    """Some whole rows of a tensor, (rows, columns), as the source has them.

    `done` bytes of weights are read by now; `mark` is where the slab ends, None where nobody could go on. A slab
    without rows is there for its mark.
    """

    tensor: TensorPlan
    rows: np.ndarray
    done: int
    mark: Mark | None = None


class _Encoded(NamedTuple):
    data: memoryview
    done: int
    mark: Mark | None


class Conversion:
    """The file that a plan becomes at a level: known to the last byte of its header before a weight moves."""

    def __init__(self, plan: ModelPlan, level: str, metadata: Mapping[str, Any] | None = None) -> None:
        """`metadata` are further GGUF entries: where the model comes from, who made the file. Raises UnknownLevel."""
        self.plan = plan
        self.types = assign(plan, level)
        self.tensors = layout([(tensor.name, tensor.shape[::-1], self.types[tensor.name]) for tensor in plan.tensors])
        self.header = encode_header(_arrange({**plan.metadata, **(metadata or {}), **describe(level)}), self.tensors)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        last = self.tensors[-1]
        return len(self.header) + align(last.offset + last.nbytes, DEFAULT_ALIGNMENT)

    @property
    def fingerprint(self) -> str:
        """A digest of all that decides the file's bytes, but for the weights themselves: header and origins."""
        origins = [(t.shard, t.offset, t.size, t.dtype, repr(t.transform), t.values) for t in self.plan.tensors]
        return hashlib.sha256(self.header + repr((SLAB, origins)).encode()).hexdigest()

    def write(
        self,
        source: Open,
        output: Output,
        *,
        start: Mark | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Quantize the weights into `output`; the source is read once, in order, from `start` on.

        `start` is a mark that `output` was told by a conversion of the same fingerprint, and `output` holds what it
        held then; None begins with the header. `threads` quantize, by default one for each CPU; `progress(read, total)`
        counts bytes of weights. Raises BadValues naming the tensor that holds NaN or infinity, and whatever `source`
        and `output` raise; when it returns, every file of the source was read to its end and verified.
        """
        workers = threads or os.cpu_count() or 1
        start = start or _BEGINNING
        writer = self._writer(output, start)
        with (
            ThreadPoolExecutor(workers, "quantize") as quantizers,
            ahead(self._submit(quantizers, source, start), workers + AHEAD) as slabs,
        ):
            for slab in slabs:
                encoded = slab.result()
                if encoded.data:
                    writer.append(encoded.data)
                if encoded.mark:
                    output.reached(encoded.mark)
                if progress:
                    progress(encoded.done, self.plan.source_bytes)
        writer.finish()

    def _submit(self, quantizers: Executor, source: Open, start: Mark) -> Iterator[Future[_Encoded]]:
        with closing(_slabs(self.plan, source, start)) as slabs:
            for slab in slabs:
                yield quantizers.submit(self._encode, slab)

    def _writer(self, output: Output, start: Mark) -> Writer:
        if start == _BEGINNING:
            output.write(self.header)
            return Writer(output, self.tensors)
        if start.tensor == len(self.tensors):
            return Writer(output, self.tensors, start.tensor)
        tensor = self.plan.tensors[start.tensor]
        filled = self.tensors[start.tensor].nbytes * start.row // (tensor.elements // _columns(tensor))
        return Writer(output, self.tensors, start.tensor, filled)

    def _encode(self, slab: Slab) -> _Encoded:
        if not slab.rows.size:
            return _Encoded(memoryview(b""), slab.done, slab.mark)
        return _Encoded(_encode(slab.tensor, slab.rows, self.types[slab.tensor.name]), slab.done, slab.mark)


def _arrange(entries: dict[str, Any]) -> dict[str, Any]:
    """The architecture, general facts, the rest, and the long tokenizer last, so that the beginning tells the most."""

    def group(key: str) -> int:
        if key == "general.architecture":
            return 0
        return {"general": 1, "lm": 2, "tokenizer": 4}.get(key.split(".")[0], 3)

    return {key: entries[key] for key in sorted(entries, key=group)}


def _slabs(plan: ModelPlan, source: Open, start: Mark) -> Generator[Slab]:
    """Cut the source into slabs, beginning at `start`; a file whose slabs are all done is still read to its end."""
    done = _read_before(plan, start)
    rest = list(enumerate(plan.tensors))[start.tensor :]
    parts = [(shard, list(part)) for shard, part in groupby(rest, key=lambda indexed: indexed[1].shard)]
    if start.offset and (not parts or parts[0][0] != start.shard):
        parts.insert(0, (start.shard, []))
    for shard, tensors in parts:
        if not shard:
            for _, tensor in tensors:
                yield Slab(tensor, np.frombuffer(bytearray(tensor.values), "<f4").reshape(-1, tensor.columns), done)
            continue
        here = start if start.offset and shard == start.shard else Mark(tensors[0][0], 0, shard)
        with closing(_Feed(source(shard, here.offset, here.state), here.offset)) as feed:
            if not here.offset:
                yield Slab(tensors[0][1], _NOTHING, done, here)
            for index, tensor in tensors:
                first = here.row if index == here.tensor else 0
                feed.skip_to(tensor.offset + first * _columns(tensor) * _dtype(tensor).itemsize)
                for end, rows in _cut(tensor, feed, first):
                    done += rows.nbytes
                    yield Slab(tensor, rows, done, feed.mark(tensor, index, end, shard))
            feed.finish()


def _read_before(plan: ModelPlan, start: Mark) -> int:
    """Bytes of weights before a mark."""
    whole = sum(tensor.size for tensor in plan.tensors[: start.tensor])
    if not start.row:
        return whole
    tensor = plan.tensors[start.tensor]
    return whole + start.row * _columns(tensor) * _dtype(tensor).itemsize


def _columns(tensor: TensorPlan) -> int:
    """Values of a row as it is read: a vector is one row to the quantizer, but a transform permutes its elements."""
    return 1 if len(tensor.shape) == 1 and tensor.transform else tensor.columns


def _dtype(tensor: TensorPlan) -> np.dtype[Any]:
    return np.dtype(_NUMPY[tensor.dtype])


def _cut(tensor: TensorPlan, feed: _Feed, first: int) -> Iterator[tuple[int, np.ndarray]]:
    """Slabs of a tensor from row `first` on, each with the number of the row after it."""
    dtype, columns = _dtype(tensor), _columns(tensor)
    total = tensor.elements // columns
    unit = tensor.transform.rows if tensor.transform else 1
    step = max(1, SLAB // (columns * dtype.itemsize * unit)) * unit
    for start in range(first, total, step):
        end = min(start + step, total)
        rows = np.empty((end - start, columns), dtype)
        feed.fill(rows.data.cast("B"))
        yield end, rows


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
    """One source file as it streams in, from `position` on."""

    def __init__(self, reader: Reader, position: int) -> None:
        self._reader = reader
        self._position = position

    def fill(self, target: memoryview) -> None:
        """The next bytes, as many as `target` holds."""
        self._reader.readinto(target)
        self._position += len(target)

    def skip_to(self, offset: int) -> None:
        """Drop what lies before byte `offset` of the file."""
        while self._position < offset:
            self.fill(memoryview(bytearray(min(offset - self._position, SLAB))))

    def mark(self, tensor: TensorPlan, index: int, row: int, shard: str) -> Mark | None:
        """The place before `row` of a tensor, or before the next tensor."""
        state = self._reader.state()
        if state is None:
            return None
        if row == tensor.elements // _columns(tensor):
            index, row = index + 1, 0
        return Mark(index, row, shard, self._position, state)

    def finish(self) -> None:
        """Read to the end, where a source compares the digest."""
        self._reader.finish()

    def close(self) -> None:
        """Let go of the source's reader."""
        self._reader.close()
