"""Who holds which tokens in the cache: sequences running and parked, prefixes they share, and the room that is left.

The cache of llama.cpp is one pool of cells. A cell belongs to every sequence that was copied from another one while it
was there, and is free when the last of them lets go. llama.cpp does not tell how many are in use, so `CellPool` counts
along: each sequence is a chain of spans, a span knows how many sequences hold it.

A sequence whose answer is complete stays where it is, parked, until its room is needed: least recently used first.

Recurrent and hybrid models cannot go back to any position, only to the end of what a sequence holds, and to checkpoints
on the way (`runtime/cache/spill.py`). Where these are made is said here: `marks`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from runtime.cache.spill import WORTH_KEEPING, Copy, Spill, common_prefix
from runtime.llama.model import Memory

PARKED_SHARE = 8


@dataclass(eq=False)
class Span:
    """A stretch of cells with the same owners."""

    size: int
    owners: int = 1


@dataclass(eq=False)
class Sequence:
    """What one sequence of the cache holds. `used` is the step at which it was parked."""

    number: int
    tokens: array[int] = field(default_factory=lambda: array("i"))
    spans: list[Span] = field(default_factory=list)
    busy: bool = False
    used: int = 0


class Cache(Protocol):
    """The cells themselves: `runtime.llama.context.Context`."""

    def copy(self, source: int, target: int, end: int, /) -> None:
        """Let the empty `target` hold the first `end` positions of `source` too."""

    def cut(self, sequence: int, start: int, /) -> bool:
        """Drop what `sequence` holds from `start` on; False, and nothing done, where the model cannot."""

    def shift(self, sequence: int, keep: int, gone: int, /) -> bool:
        """Drop `gone` positions after the first `keep`, and move up the rest; False where the model cannot."""


class CellPool:
    """The book of a cache; what is noted here is done there."""

    def __init__(self, cells: int, sequences: int, cache: Cache) -> None:
        self.cells = cells
        self.sequences = [Sequence(number) for number in range(sequences)]
        self.used = 0
        self.memory: Memory = "cells"
        self.spill: Spill | None = None
        """Where copies of sequences are kept that the cache has no room for, and checkpoints."""
        self._cache = cache

    @property
    def free(self) -> int:
        """Cells that nobody holds."""
        return self.cells - self.used

    @property
    def held_by_busy(self) -> int:
        """Cells that at least one running sequence holds."""
        return sum({id(span): span.size for seq in self.sequences if seq.busy for span in seq.spans}.values())

    def match(self, tokens: array[int]) -> tuple[Sequence | None, int]:
        """The sequence that holds the longest beginning of `tokens` to go on from; parked ones win a draw."""
        best, length = None, 0
        for seq in self.sequences:
            common = common_prefix(seq.tokens, tokens)
            if self.memory != "cells" and common < len(seq.tokens):
                common = self.spill.usable(seq.tokens, common) if self.spill else 0
            if common > length or (best and common == length > 0 and best.busy and not seq.busy):
                best, length = seq, common
        return best, length

    def start(self, source: Sequence | None, length: int) -> Sequence | None:
        """A busy sequence that holds the first `length` tokens of `source`; None when all sequences are busy.

        A parked source that ends there is taken over; else its cells are shared, and the least recently used parked
        sequence gives way when none is empty.
        """
        if source and not source.busy and length == len(source.tokens):
            source.busy = True
            return source
        empty = next((seq for seq in self.sequences if not seq.busy and not seq.tokens), None)
        target = empty or next((seq for seq in self._parked() if seq is not source), None)
        if target is None:
            if source is None or source.busy:
                return None
            self._cut_back(source, length)
            source.busy = True
            return source
        checkpoint = source and self._checkpoint(source, length)
        if target.tokens:
            self._put_away(target)
        if source and length:
            self.share(source, target, length)
            if checkpoint and not self._restored(target, checkpoint):
                self.clear(target)
        target.busy = True
        return target

    def marks(self, tokens: array[int], length: int, border: int) -> list[int]:
        """Where checkpoints are due while `tokens` are read, of which a sequence holds `length`.

        Where other prompts have parted from this one, and more may; where those will part that continue it, which is
        `border`; and at the end, less the token that is read anew for its logits.
        """
        if self.memory == "cells" or not self.spill or not self.spill.limit:
            return []
        parting = max(common_prefix(seq.tokens, tokens) for seq in self.sequences)
        parting = max(parting, self.spill.parting(tokens))
        marks: list[int] = []
        for mark in sorted({parting, border, len(tokens) - 1}):
            if mark >= (marks[-1] if marks else length) + WORTH_KEEPING or (mark == border > length):
                marks.append(mark)
        return marks

    def share(self, source: Sequence, target: Sequence, length: int) -> None:
        """Let the empty `target` hold the first `length` tokens of `source` as well."""
        self._cache.copy(source.number, target.number, length)
        self._split(source, length)
        size = 0
        for span in source.spans:
            if size == length:
                break
            size += span.size
            span.owners += 1
            target.spans.append(span)
        target.tokens = source.tokens[:length]

    def grow(self, seq: Sequence, tokens: array[int] | memoryview[int]) -> None:
        """Note that `tokens` were computed at the end of `seq`."""
        seq.tokens.extend(tokens)
        count = len(tokens)
        self.used += count
        if seq.spans and seq.spans[-1].owners == 1:
            seq.spans[-1].size += count
        else:
            seq.spans.append(Span(count))

    def cut(self, seq: Sequence, length: int) -> bool:
        """Drop what `seq` holds beyond `length` tokens; all of it, and False, where the model's state cannot be cut."""
        if length >= len(seq.tokens):
            return True
        done = self._cache.cut(seq.number, length)
        if not done:
            self._cache.cut(seq.number, 0)
            length = 0
        self._split(seq, length)
        size = 0
        kept = []
        for span in seq.spans:
            size += span.size
            if size <= length:
                kept.append(span)
            else:
                self._release(span)
        seq.spans = kept
        del seq.tokens[length:]
        return done

    def shift(self, seq: Sequence, keep: int, gone: int) -> bool:
        """Drop `gone` tokens after the first `keep` of `seq`, which must share with nobody; False when it cannot be."""
        if any(span.owners > 1 for span in seq.spans) or not self._cache.shift(seq.number, keep, gone):
            return False
        del seq.tokens[keep : keep + gone]
        seq.spans = [Span(len(seq.tokens))]
        self.used -= gone
        return True

    def clear(self, seq: Sequence) -> None:
        """Drop all that `seq` holds."""
        self.cut(seq, 0)

    def park(self, seq: Sequence, step: int) -> None:
        """Keep what `seq` holds for whoever begins alike; what another parked one holds in full is not kept twice."""
        seq.busy = False
        seq.used = step
        for other in self.sequences:
            if other is seq or other.busy or not other.tokens:
                continue
            if seq.tokens[: len(other.tokens)] == other.tokens:
                self.clear(other)

    def interrupt(self, seq: Sequence) -> None:
        """Take the room of a running sequence, keeping a copy of what it holds."""
        self._put_away(seq)
        seq.busy = False

    def evict(self) -> bool:
        """Free the least recently used parked sequence, keeping a copy; False when there is none."""
        oldest = next(self._parked(), None)
        if oldest is None:
            return False
        self._put_away(oldest)
        return True

    def trim(self) -> None:
        """Put away what is parked beyond an eighth of the pool: each cell in use costs every step a look."""
        if self.spill and self.spill.limit:
            while self.used - self.held_by_busy > self.cells // PARKED_SHARE and self.evict():
                pass

    def recall(self, tokens: array[int], length: int) -> bool:
        """Bring back a copy that holds clearly more of `tokens` than `length`; False when nothing was changed here."""
        if self.spill is None:
            return False
        entry, there = self.spill.match(tokens)
        if entry is None or there < length + WORTH_KEEPING:
            return False
        target = self.vacant()
        while target and self.free < len(entry.tokens) and self.evict():
            pass
        if target and self.free >= len(entry.tokens) and self.spill.restore(entry, target.number):
            self.grow(target, entry.tokens)
            self._cut_back(target, there)
        return True

    def mark(self, seq: Sequence) -> None:
        """Make a checkpoint of what `seq` holds."""
        if self.spill:
            self.spill.mark(seq.number, seq.tokens)

    def _checkpoint(self, seq: Sequence, length: int) -> Copy | None:
        """What is needed to go back to `length` in `seq`, where the cache cannot do that by itself."""
        if self.memory == "cells" or length >= len(seq.tokens) or not self.spill:
            return None
        return self.spill.checkpoint(seq.tokens, length)

    def _restored(self, seq: Sequence, checkpoint: Copy) -> bool:
        """Put the checkpoint's state into `seq`, which holds just its tokens; False, and it is empty, without room."""
        assert self.spill
        if self.memory == "recurrent":
            self._cache.cut(seq.number, 0)
        return self.spill.restore(checkpoint, seq.number)

    def _cut_back(self, seq: Sequence, length: int) -> None:
        """Cut `seq`, with the help of a checkpoint where there is one; else it may end up empty."""
        checkpoint = self._checkpoint(seq, length)
        lost = checkpoint and not self._restored(seq, checkpoint)
        self.cut(seq, 0 if lost else length)

    def vacant(self) -> Sequence | None:
        """A sequence that holds nothing; a parked one gives way. None when all are busy."""
        while True:
            for seq in self.sequences:
                if not seq.busy and not seq.tokens:
                    return seq
            if not self.evict():
                return None

    def _put_away(self, seq: Sequence) -> None:
        """Empty `seq`, keeping a copy of what it holds."""
        if self.spill:
            self.spill.keep(seq.number, seq.tokens)
        self.clear(seq)

    def _parked(self) -> Iterator[Sequence]:
        return iter(sorted((seq for seq in self.sequences if not seq.busy and seq.tokens), key=lambda seq: seq.used))

    def _split(self, seq: Sequence, length: int) -> None:
        """Make `length` a border between spans, for every sequence that holds the span there."""
        start = 0
        for span in seq.spans:
            if start < length < start + span.size:
                rest = Span(start + span.size - length, span.owners)
                span.size = length - start
                for holder in self.sequences:
                    for i, held in enumerate(holder.spans):
                        if held is span:
                            holder.spans.insert(i + 1, rest)
                            break
                return
            start += span.size

    def _release(self, span: Span) -> None:
        span.owners -= 1
        if not span.owners:
            self.used -= span.size
