"""Copies a finished GGUF file, and joins its parts to one file; the interface is the same as a conversion's.

A file in one piece is copied byte for byte. Parts become the file that llama.cpp's `gguf-split --merge` makes of them:
the metadata of the first part without the entries of the split, then the tensors of all parts, one after the other.
"""

from __future__ import annotations

import hashlib
from contextlib import closing
from itertools import groupby
from typing import NamedTuple

from quant.gguf.header import DEFAULT_ALIGNMENT, align
from quant.gguf.writer import encode_header, layout
from quant.plan import ModelPlan, Progress
from quant.stream.streams import Feed, Mark, Open, Output, finish_unread
from quant.types import QuantType

PIECE = 4 << 20


class _Range(NamedTuple):
    """`size` bytes at `offset` of a source file that are copied together; `padding` zeros follow them."""

    number: int
    shard: str
    offset: int
    size: int
    padding: int


class FileCopy:
    """The copy of a plan that has a level already."""

    def __init__(self, plan: ModelPlan, size: int) -> None:
        """`size` is the sum of the bytes of the plan's source files."""
        self.plan = plan
        self.types: dict[str, QuantType] = {}
        if len(plan.shards) == 1:
            self._header, self._ranges = b"", [_Range(0, plan.shards[0], 0, size, 0)]
        else:
            self._header, self._ranges = _joined(plan)
        self._total = sum(each.size for each in self._ranges)
        self.size = len(self._header) + sum(each.size + each.padding for each in self._ranges)

    @property
    def fingerprint(self) -> str:
        """A digest of the header, and of the place of every tensor."""
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
        """Read the files into `output`, from `start` on; raises the errors of both. `threads` has no effect here.

        In a mark, `tensor` is the number of a range, and `row` is the number of bytes of it that are written.
        """
        begun = start or Mark(0, 0, self.plan.shards[0])
        if start is None:
            output.write(self._header)
        done = sum(each.size for each in self._ranges[: begun.tensor]) + begun.row
        buffer = memoryview(bytearray(PIECE))
        for shard, ranges in groupby(self._ranges[begun.tensor :], lambda each: each.shard):
            here = begun if shard == begun.shard else Mark(0, 0, shard)
            with closing(Feed(source(shard, here.offset, here.state), here.offset)) as feed:
                for each in ranges:
                    at = begun.row if each.number == begun.tensor else 0
                    if not feed.position:
                        output.reached(Mark(each.number, at, shard))
                    feed.skip_to(each.offset + at)
                    while at < each.size:
                        piece = buffer[: min(PIECE, each.size - at)]
                        feed.fill(piece)
                        output.write(piece)
                        at, done = at + len(piece), done + len(piece)
                        if at == each.size:
                            output.write(bytes(each.padding))
                        self._tell(output, feed.mark(each.number, at, shard), at == each.size)
                        if progress:
                            progress(done, self._total)
                feed.finish()
        finish_unread(source, self.plan.shards, {each.shard for each in self._ranges})

    def _tell(self, output: Output, mark: Mark | None, whole: bool) -> None:
        """Tell `output` the mark after a piece; after the last piece of a range, the mark of the next range."""
        if mark is None:
            return
        following = self._ranges[mark.tensor + 1 : mark.tensor + 2] if whole else []
        if following and following[0].shard == mark.shard:
            mark = Mark(mark.tensor + 1, 0, mark.shard, mark.offset, mark.state)
        output.reached(mark)


def _joined(plan: ModelPlan) -> tuple[bytes, list[_Range]]:
    placed = layout(plan.as_stored())
    ranges = [
        _Range(number, tensor.shard, tensor.offset, tensor.size, align(tensor.size, DEFAULT_ALIGNMENT) - tensor.size)
        for number, tensor in enumerate(plan.tensors)
    ]
    return encode_header(plan.metadata, placed, plan.kinds), ranges
