"""The streaming pass: weights come in once, front to back, and leave as a finished GGUF file.

One thread reads slabs of whole rows ahead, several threads transform and quantize one slab each, and the calling
thread writes them in order. Each stage waits for the next, so a few slabs bound the memory for a model of any size. The
bytes depend neither on the number of threads nor on the pieces in which the source arrives.

After each slab the output gets a mark, from which another pass could resume: only whole slabs are read, so the end of
a slab is an exact place in the source. The quantized parts of a stack of experts wait in memory until its last part has
come, because other tensors may lie between the parts in the source; there are no marks while they do. Scales and other
companions of packed weights are fetched when the weights come, and compared when the pass reaches them
(`quant/stream/companions.py`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from itertools import chain, groupby
from typing import Any, NamedTuple

import numpy as np

from quant.feedback.matrix import Feedback
from quant.feedback.traits import TRAITS
from quant.gguf.header import DEFAULT_ALIGNMENT, align
from quant.gguf.writer import Writer, encode_header, layout
from quant.importance import Importance
from quant.levels.budget import assignment, entries_of
from quant.levels.harms import MeasuredHarms
from quant.plan import ModelPlan, Progress, Read, TensorPlan
from quant.stream.ahead import ahead
from quant.stream.companions import CompanionReader, Peek
from quant.stream.slabs import Slab, encode, weights_of
from quant.stream.streams import Feed, Mark, Open, Output, verify_unread

SLAB = 2 << 20  # bytes of a slab, unless a transform needs more rows together
WAITING = 2  # slabs that are read ahead, beside one for each thread
# The numpy dtype in which a tensor is read. BF16 has none; its bit patterns are the upper halves of float32.
_NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}
_BEGINNING = Mark(0, 0, "")
_NOTHING = np.empty((0, 0))


class _Encoded(NamedTuple):
    """A slab, and the bytes of the output that were made of it."""

    data: memoryview
    slab: Slab


class Conversion:
    """The GGUF file of a plan at a level: its header at once, its tensors by `write`.

    `types` has the type of each tensor by name, `tensors` their places in the file, `header` the bytes before them.
    """

    def __init__(
        self,
        plan: ModelPlan,
        level: str,
        metadata: Mapping[str, Any] | None = None,
        importance: Importance | None = None,
        feedback: Feedback | None = None,
        harms: MeasuredHarms | None = None,
    ) -> None:
        """`metadata` adds GGUF entries, such as the model's source and our version.

        `importance` weighs the squared errors of each matrix that it names by its inputs; the file says so. `feedback`
        takes its place for the matrices that it knows, at types that error feedback can make. `harms` decide about the
        types, and `reason` says how. Raises UnknownLevel for a level that is neither a name nor a budget, or a budget
        that does not fit the model; BadImportance for importance of another model.
        """
        self.plan, self.importance, self.feedback = plan, importance, feedback
        self.types, self.reason = assignment(plan, level, harms)
        self.tensors = layout(plan.at(self.types))
        entries = {**plan.metadata, **(metadata or {}), **entries_of(level, self.types)}
        if importance:
            importance.check(self.tensors)
            entries |= importance.entries
        if feedback:
            entries |= feedback.entries
        self.header = encode_header(_arrange(entries), self.tensors)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        last = self.tensors[-1]
        return len(self.header) + align(last.offset + last.nbytes, DEFAULT_ALIGNMENT)

    @property
    def fingerprint(self) -> str:
        """A digest of everything but the weights that decides the file's bytes: the header, the origin of each tensor.

        A pass resumes from a mark of another one only where both have the same fingerprint.
        """
        origins = [
            (t.shard, t.offset, t.size, t.dtype, repr(t.transform), t.values, t.parts, repr(t.packing), t.companions)
            for t in self.plan.tensors
        ]
        return hashlib.sha256(self.header + repr((SLAB, origins)).encode()).hexdigest()

    def write(
        self,
        source: Open,
        output: Output,
        *,
        start: Mark | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
        peek: Peek | None = None,
    ) -> None:
        """Quantize the weights into `output`; the source is read once, in order, from `start` on.

        start: a mark that a conversion of the same fingerprint gave to `output`, which still holds the bytes up to it;
            None begins with the header.
        threads: how many quantize; by default one for each CPU.
        progress: called with (bytes of weights read, bytes of weights in all).
        peek: reads bytes of the source out of order, (shard, offset, size); a plan with packed weights needs it.
        Raises BadValues, which names the tensor that holds NaN or infinity, and the errors of `source` and `output`.
        When it returns, every file of the source was read to its end and verified.
        """
        workers = threads or os.cpu_count() or 1
        start = start or _BEGINNING
        writer, stacks = self._writer(output, start), _Stacks()
        with (
            ThreadPoolExecutor(workers, "quantize") as quantizers,
            ahead(self._submit(quantizers, source, start, peek), workers + WAITING) as slabs,
        ):
            for future in slabs:
                encoded, slab = future.result()
                for data in stacks.release(encoded, slab):
                    writer.append(data)
                if slab.mark:
                    output.reached(slab.mark)
                if progress:
                    progress(slab.bytes_read, self.plan.source_bytes)
        writer.finish()

    def _submit(self, quantizers: Executor, source: Open, start: Mark, peek: Peek | None) -> Iterator[Future[_Encoded]]:
        with closing(_slabs(self.plan, source, start, peek)) as slabs:
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
            return _Encoded(memoryview(b""), slab)
        weights = weights_of(slab, self.importance) if self.importance else None
        type = self.types[slab.tensor.name]
        taken_over = slab.tensor.packing is not None and slab.tensor.packing.exact is type
        fed = self.feedback is not None and type in TRAITS and not taken_over
        factor = self.feedback.factor(slab.tensor.name) if self.feedback and fed else None
        return _Encoded(encode(slab, type, weights, factor), slab)


def _arrange(entries: dict[str, Any]) -> dict[str, Any]:
    """The entries in the order of the file: architecture, general facts, our own, all others, tokenizer.

    The tokenizer comes last because it is long: so the first kilobytes of a file describe its model.
    """

    def group(key: str) -> int:
        if key == "general.architecture":
            return 0
        return {"general": 1, "lm": 2, "tokenizer": 4}.get(key.split(".")[0], 3)

    return {key: entries[key] for key in sorted(entries, key=group)}


class _Stacks:
    """Keeps the quantized parts of each stack of experts until the stack is whole."""

    def __init__(self) -> None:
        self._waiting: dict[str, dict[int, list[memoryview]]] = {}

    def release(self, data: memoryview, slab: Slab) -> Iterator[memoryview]:
        """The bytes that can be written now that `data`, the quantized bytes of `slab`, has come.

        These are `data` itself for a tensor that is no stack; for a stack nothing, or with its last slab all of it.
        """
        if slab.read is None or not slab.tensor.parts:
            return iter((data,) if data else ())
        parts = self._waiting.setdefault(slab.tensor.name, {})
        parts.setdefault(slab.read.number, []).append(data)
        if not slab.whole:
            return iter(())
        whole = self._waiting.pop(slab.tensor.name)
        return chain.from_iterable(whole[number] for number in sorted(whole))


def _slabs(plan: ModelPlan, source: Open, start: Mark, peek: Peek | None) -> Generator[Slab]:
    """Cut the source into slabs, from `start` on; every file is read to its end, also behind its last slab."""
    bytes_read = bytes_before(plan, start)
    for tensor in plan.tensors[start.tensor :]:
        if not tensor.shard:
            values = np.frombuffer(bytearray(tensor.values), "<f4")
            yield Slab(tensor, values.reshape(-1, tensor.columns), bytes_read)
    cursor, companions = _TensorCursor(plan, start), CompanionReader(plan, peek)
    to_come = _to_come(plan, start)
    files = [(shard, list(reads)) for shard, reads in groupby(to_come, lambda read: read.part.shard)]
    if start.offset and (not files or files[0][0] != start.shard):
        files.insert(0, (start.shard, []))  # all its tensors are written, and the rest of the file is to be verified
    for shard, reads in files:
        here = start if start.offset and shard == start.shard else Mark(cursor.next, 0, shard)
        with closing(Feed(source(shard, here.offset, here.state), here.offset)) as feed:
            if not here.offset and not cursor.parts_left:
                yield Slab(plan.tensors[reads[0].tensor], _NOTHING, bytes_read, here)
            for part, shared in groupby(reads, lambda read: read.part):
                uses = list(shared)
                tensor = plan.tensors[uses[0].tensor]
                first = here.row if uses[0].tensor == here.tensor else 0
                feed.skip_to(part.offset + first * _columns(tensor) * _dtype(tensor).itemsize)
                for read in uses:
                    cursor.begin(read)
                for row, last, rows in _cut(tensor, uses[0], feed, first):
                    bytes_read += rows.nbytes
                    for read in uses:
                        tensor = plan.tensors[read.tensor]
                        if read.companion:
                            companions.compare(tensor, read.part, rows)
                            continue
                        whole = last and cursor.end(read)
                        mark = None if cursor.parts_left else feed.mark(cursor.next, 0 if whole else row, shard)
                        yield Slab(tensor, rows, bytes_read, mark, read, whole, companions.of(tensor, read))
            feed.finish()
    verify_unread(source, plan.shards, {read.part.shard for read in plan.reads()})


def _to_come(plan: ModelPlan, start: Mark) -> Iterator[Read]:
    """The reads from `start` on: companions of later weights may lie before it."""
    order = {shard: number for number, shard in enumerate(plan.shards)}
    begin = (order.get(start.shard, 0), start.offset)
    for read in plan.reads(start.tensor):
        if not read.companion or (order[read.part.shard], read.part.offset) >= begin:
            yield read


class _TensorCursor:
    """The pass's place among the plan's tensors: the first `next` are complete.

    `parts_left` has the number of each stack that is begun and not complete, and how many of its parts are to come.
    """

    def __init__(self, plan: ModelPlan, start: Mark) -> None:
        self._tensors = plan.tensors
        computed = next((number for number, tensor in enumerate(plan.tensors) if tensor.shard), 0)
        self.next = max(start.tensor, computed)
        self.parts_left: dict[int, int] = {}

    def begin(self, read: Read) -> None:
        """Note that this part comes next; a companion is no part."""
        parts = len(self._tensors[read.tensor].parts)
        if parts and not read.companion:
            self.parts_left.setdefault(read.tensor, parts)

    def end(self, read: Read) -> bool:
        """Note that all of this part has come; whether its tensor is complete now."""
        left = self.parts_left.pop(read.tensor, 1) - 1
        if left:
            self.parts_left[read.tensor] = left
            return False
        self.next = read.tensor + 1
        return True


def bytes_before(plan: ModelPlan, start: Mark | None) -> int:
    """Bytes of weights that lie before a mark in the source."""
    if start is None:
        return 0
    whole = sum(tensor.size for tensor in plan.tensors[: start.tensor])
    if not start.row:
        return whole
    tensor = plan.tensors[start.tensor]
    return whole + start.row * _columns(tensor) * _dtype(tensor).itemsize


def _columns(tensor: TensorPlan) -> int:
    """Values of a row as it is read. A vector is one row, except with a transform: then each value is a row.

    So a transform counts the values of a vector as it counts the rows of a matrix.
    """
    return 1 if len(tensor.shape) == 1 and tensor.transform else tensor.columns


def _dtype(tensor: TensorPlan) -> np.dtype[Any]:
    return np.dtype(tensor.packing.dtypes[0] if tensor.packing else _NUMPY[tensor.dtype])


def _cut(tensor: TensorPlan, read: Read, feed: Feed, first: int) -> Iterator[tuple[int, bool, np.ndarray]]:
    """Cut a part into slabs, from row `first` on: (number of the row behind the slab, whether it is the last, rows)."""
    dtype, columns, size = _dtype(tensor), _columns(tensor), read.part.size
    if tensor.packing:
        dtype = np.dtype(tensor.packing.dtypes[read.companion])
    unit = tensor.transform.rows if tensor.transform else 1
    if tensor.packing or not unit:
        unit, columns = 1, size // dtype.itemsize
    total = size // (columns * dtype.itemsize)
    step = max(1, SLAB // (columns * dtype.itemsize * unit)) * unit
    for start in range(first, total, step):
        end = min(start + step, total)
        rows = np.empty((end - start, columns), dtype)
        feed.fill(rows.data.cast("B"))
        yield end, end == total, rows
