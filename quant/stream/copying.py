"""Copies a GGUF file that is quantized already; `FileCopy` has the interface of `pipeline.Conversion`.

A file in one piece is copied byte for byte, unless its header is another one, as names are translated or rows are cut
out (`quant/cuts/`). The parts of a split file are
joined, as llama.cpp's `gguf-split --merge` does: the metadata of the first part without the `split.*` entries, then the
tensors of all parts, end to end.
"""

from __future__ import annotations

import hashlib
from contextlib import closing
from itertools import groupby
from typing import NamedTuple

from quant.gguf.header import DEFAULT_ALIGNMENT, align
from quant.gguf.writer import encode_header, layout
from quant.plan import ModelPlan, Part, Progress
from quant.stream.streams import Feed, Mark, Open, Output, verify_unread
from quant.types import QuantType

PIECE = 4 << 20  # bytes that are read and written at a time


class _Range(NamedTuple):
    """Bytes to copy: number `number` of the plan's ranges, `size` bytes at `offset` of file `shard`, then zeros.

    The zeros, `padding` of them, align the next tensor.
    """

    number: int
    shard: str
    offset: int
    size: int
    padding: int


class FileCopy:
    """The copy of the source of a plan that has a `level`."""

    def __init__(self, plan: ModelPlan, size: int) -> None:
        """`size` is the length of the source's only file in bytes; it has no effect for a split file."""
        self.plan = plan
        self.types: dict[str, QuantType] = {}
        if len(plan.shards) == 1 and not plan.translated:
            self._header, self._ranges = b"", [_Range(0, plan.shards[0], 0, size, 0)]
        else:
            self._header, self._ranges = _join_parts(plan)
        self._total = sum(each.size for each in self._ranges)
        self.size = len(self._header) + sum(each.size + each.padding for each in self._ranges)

    @property
    def fingerprint(self) -> str:
        """A digest of everything but the weights that decides the output's bytes: header, ranges, tensors."""
        facts = repr((self.size, self._ranges, self.plan.tensors, self.plan.metadata))
        return hashlib.sha256(self._header + facts.encode()).hexdigest()

    def write(
        self,
        source: Open,
        output: Output,
        *,
        start: Mark | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Copy the source's files into `output`, from `start` on; raises the errors of both.

        A copy has marks of its own kind: `tensor` is the number of a range, `row` the bytes of it that are written.
        `threads` has no effect; `Conversion.write` has it.
        """
        begin = start or Mark(0, 0, self.plan.shards[0])
        if start is None:
            output.write(self._header)
        bytes_read = sum(each.size for each in self._ranges[: begin.tensor]) + begin.row
        buffer = memoryview(bytearray(PIECE))
        for shard, ranges in groupby(self._ranges[begin.tensor :], lambda each: each.shard):
            here = begin if shard == begin.shard else Mark(0, 0, shard)
            with closing(Feed(source(shard, here.offset, here.state), here.offset)) as feed:
                for each in ranges:
                    at = begin.row if each.number == begin.tensor else 0
                    if not feed.position:
                        output.reached(Mark(each.number, at, shard))
                    feed.skip_to(each.offset + at)
                    while at < each.size:
                        piece = buffer[: min(PIECE, each.size - at)]
                        feed.fill(piece)
                        output.write(piece)
                        at, bytes_read = at + len(piece), bytes_read + len(piece)
                        if at == each.size:
                            output.write(bytes(each.padding))
                        self._report(output, feed.mark(each.number, at, shard), at == each.size)
                        if progress:
                            progress(bytes_read, self._total)
                feed.finish()
        verify_unread(source, self.plan.shards, {each.shard for each in self._ranges})

    def _report(self, output: Output, mark: Mark | None, whole: bool) -> None:
        """Report the mark after a piece to `output`; after a `whole` range, the mark before the next one.

        After the last range of a file there is no next one to begin at, so the mark stays at the end of this one.
        """
        if mark is None:
            return
        following = self._ranges[mark.tensor + 1 : mark.tensor + 2] if whole else []
        if following and following[0].shard == mark.shard:
            mark = Mark(mark.tensor + 1, 0, mark.shard, mark.offset, mark.state)
        output.reached(mark)


def _join_parts(plan: ModelPlan) -> tuple[bytes, list[_Range]]:
    """The header of the joined file, and the tensors of all parts as ranges."""
    placed = layout(plan.as_stored())
    ranges: list[_Range] = []
    for tensor in plan.tensors:
        parts = tensor.parts or (Part(tensor.shard, tensor.offset, tensor.size),)
        padding = align(tensor.size, DEFAULT_ALIGNMENT) - tensor.size
        for part in parts:
            number, last = len(ranges), part is parts[-1]
            ranges.append(_Range(number, part.shard, part.offset, part.size, padding if last else 0))
    return encode_header(plan.metadata, placed, plan.kinds), ranges
