"""The KV cache's books: which sequence holds which tokens, which cells they share, and how many cells are free.

llama.cpp's unified KV cache is one pool of cells, one for each token. When a sequence is copied, its cells belong to
both sequences; a cell is free when the last owner drops it. llama.cpp does not tell how many cells are in use, so
`CellPool` counts along. Each sequence is a chain of spans, and a span knows how many sequences own it. An example: two
answers of 20 and 30 tokens to the same prompt of 100 hold a span of 100 with two owners, and one of 20 and one of 30
with one owner each: 150 cells.

When an answer is complete its sequence is parked: it keeps its cells until others need them, so that a prompt which
begins alike can continue it. The least recently parked sequence gives way first.

Recurrent and hybrid models cannot be cut at any position, only restored at the end of a sequence or at a checkpoint
(`runtime/cache/spill.py`). `CellPool.checkpoint_positions` decides where checkpoints are made.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from runtime.cache.spill import WORTH_KEEPING, Copy, Spill, common_prefix
from runtime.llama.model import Memory

# Parked sequences keep at most 1 / N of the cells.
PARKED_SHARE = 8


@dataclass(eq=False)
class Span:
    """`size` consecutive cells of a sequence, all owned by the same `owners` sequences."""

    size: int
    owners: int = 1


@dataclass(eq=False)
class Sequence:
    """A sequence of the KV cache and the tokens in it. A sequence that is not `busy` is parked, or empty."""

    number: int
    tokens: array[int] = field(default_factory=lambda: array("i"))
    spans: list[Span] = field(default_factory=list)
    busy: bool = False
    parked_at: int = 0
    """The engine's step at which it was parked."""
    key: Hashable = ()
    """What changes the weights that computed its cells: only texts computed with the same may share them."""


class Cache(Protocol):
    """The KV cache itself: `runtime.llama.context.Context`."""

    def copy(self, source: int, target: int, end: int, /) -> None:
        """Let the empty `target` hold the first `end` positions of `source` too."""

    def cut(self, sequence: int, start: int, /) -> bool:
        """Drop the positions of `sequence` from `start` on; False, and nothing done, where the model cannot."""

    def shift(self, sequence: int, keep: int, count: int, /) -> bool:
        """Drop `count` positions after the first `keep`, and move up the rest; False where the model cannot."""


class CellPool:
    """Changes the KV cache, and counts along. `cells` is the capacity, `used` the cells in use.

    `memory` says whether a sequence can be cut at any position ("cells") or needs a checkpoint to go back. `spill`
    holds the checkpoints, and copies of sequences that were dropped.
    """

    def __init__(self, cache: Cache, cells: int, sequences: int, memory: Memory, spill: Spill) -> None:
        self.cells = cells
        self.sequences = [Sequence(number) for number in range(sequences)]
        self.used = 0
        self.memory = memory
        self.spill = spill
        self._cache = cache

    @property
    def free(self) -> int:
        """Cells that no sequence holds."""
        return self.cells - self.used

    @property
    def busy_cells(self) -> int:
        """Cells that at least one busy sequence holds."""
        # A span that several sequences own is one object, and counts once.
        return sum({id(span): span.size for seq in self.sequences if seq.busy for span in seq.spans}.values())

    def match(self, tokens: array[int], key: Hashable = ()) -> tuple[Sequence | None, int]:
        """The sequence of this key with the longest usable beginning of `tokens`, and that beginning's length.

        Among equally good ones a parked sequence is preferred: it can be continued in place.
        """
        best, length = None, 0
        for seq in self._of(key):
            common = common_prefix(seq.tokens, tokens)
            if self.memory != "cells" and common < len(seq.tokens):
                common = self.spill.usable(seq.tokens, common, key)
            if common > length or (best and common == length > 0 and best.busy and not seq.busy):
                best, length = seq, common
        return best, length

    def _of(self, key: Hashable) -> Iterator[Sequence]:
        return (seq for seq in self.sequences if seq.key == key)

    def start(self, source: Sequence | None, length: int, key: Hashable = ()) -> Sequence | None:
        """A busy sequence that holds the first `length` tokens of `source`; None when all sequences are busy.

        The source is of the same key. A parked one that ends there is continued itself. Otherwise an empty sequence
        shares the source's cells; when none is empty, the least recently parked one is emptied for it. When the source
        is the only parked sequence, it is cut to `length` and continued itself.
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
        target.key = key
        if source and length:
            self.share(source, target, length)
            if checkpoint and not self._restore(target, checkpoint):
                self.clear(target)
        target.busy = True
        return target

    def checkpoint_positions(self, tokens: array[int], length: int, stable: int, key: Hashable = ()) -> list[int]:
        """Positions at which to make checkpoints while `tokens` are read; the first `length` are in the cache already.

        There are up to three. The first is where an earlier prompt parted from this one, because others may part there
        too. The second is after the `stable` tokens, with which the conversation's next prompt begins. The third is
        before the last token, for the same prompt once more. A model whose cells can be cut needs none.
        """
        if self.memory == "cells" or not self.spill.limit:
            return []
        parting = max((common_prefix(seq.tokens, tokens) for seq in self._of(key)), default=0)
        parting = max(parting, self.spill.longest_prefix(tokens, key))
        positions: list[int] = []
        for position in sorted({parting, stable, len(tokens) - 1}):
            # A checkpoint close behind another saves little. The one after `stable` is made all the same, because the
            # conversation's next prompt continues there.
            far = position >= (positions[-1] if positions else length) + WORTH_KEEPING
            if far or position == stable > length:
                positions.append(position)
        return positions

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
        target.tokens, target.key = source.tokens[:length], source.key

    def grow(self, seq: Sequence, tokens: array[int] | memoryview[int]) -> None:
        """Record that `tokens` were computed at the end of `seq`."""
        seq.tokens.extend(tokens)
        count = len(tokens)
        self.used += count
        if seq.spans and seq.spans[-1].owners == 1:
            seq.spans[-1].size += count
        else:
            seq.spans.append(Span(count))

    def cut(self, seq: Sequence, length: int) -> bool:
        """Drop the tokens of `seq` beyond `length`; all of them, and False, where the model's state cannot be cut."""
        if length >= len(seq.tokens):
            return True
        done = self._cache.cut(seq.number, length)
        if not done:
            self._cache.cut(seq.number, 0)
            length = 0
        self._split(seq, length)
        size = 0
        spans = []
        for span in seq.spans:
            size += span.size
            if size <= length:
                spans.append(span)
            else:
                self._release(span)
        seq.spans = spans
        del seq.tokens[length:]
        return done

    def shift(self, seq: Sequence, keep: int, count: int) -> bool:
        """Drop `count` tokens of `seq` after the first `keep`; False where it shares cells, or the model cannot."""
        if any(span.owners > 1 for span in seq.spans) or not self._cache.shift(seq.number, keep, count):
            return False
        del seq.tokens[keep : keep + count]
        seq.spans = [Span(len(seq.tokens))]
        self.used -= count
        return True

    def drop_rest(self, seq: Sequence) -> None:
        """Drop cells of `seq` that were computed and not recorded; all of its cells, where that is not possible."""
        if not self._cache.cut(seq.number, len(seq.tokens)):
            self.clear(seq)

    def clear(self, seq: Sequence) -> None:
        """Drop all tokens of `seq`."""
        self.cut(seq, 0)

    def park(self, seq: Sequence, step: int) -> None:
        """Keep the tokens of `seq` for prompts that begin alike; drop parked sequences with a beginning of it."""
        seq.busy = False
        seq.parked_at = step
        for other in self.sequences:
            if other is seq or other.busy or not other.tokens or other.key != seq.key:
                continue
            if seq.tokens[: len(other.tokens)] == other.tokens:
                self.clear(other)

    def interrupt(self, seq: Sequence) -> None:
        """Empty a busy sequence to make room; a copy goes to the spill."""
        self._put_away(seq)
        seq.busy = False

    def evict(self) -> bool:
        """Empty the least recently parked sequence, with a copy to the spill; False when none is parked."""
        oldest = next(self._parked(), None)
        if oldest is None:
            return False
        self._put_away(oldest)
        return True

    def trim(self) -> None:
        """Evict parked sequences down to an eighth of the cells, because each step looks at all cells in use."""
        if self.spill.limit:
            while self.used - self.busy_cells > self.cells // PARKED_SHARE and self.evict():
                pass

    def recall(self, tokens: array[int], length: int, key: Hashable = ()) -> bool:
        """Restore the copy that has more of `tokens` than the `length` in the cache, if it is worth it.

        True where the cache may have changed, so that the caller has to `match` again: sequences may have been evicted
        even though the copy had no room in the end.
        """
        copy, usable = self.spill.match(tokens, key)
        if copy is None or usable < length + WORTH_KEEPING:
            return False
        target = self.vacant()
        while target and self.free < len(copy.tokens) and self.evict():
            pass
        if target and self.free >= len(copy.tokens) and self.spill.restore(copy, target.number):
            target.key = key
            self.grow(target, copy.tokens)
            self._cut_back(target, usable)
        return True

    def make_checkpoint(self, seq: Sequence) -> None:
        """Copy the state of `seq` as it is now."""
        self.spill.add_checkpoint(seq.number, seq.tokens, seq.key)

    def _checkpoint(self, seq: Sequence, length: int) -> Copy | None:
        """The checkpoint needed to go back to `length` in `seq`; None where the cache can do that alone."""
        if self.memory == "cells" or length >= len(seq.tokens):
            return None
        return self.spill.latest_checkpoint(seq.tokens, length, seq.key)

    def _restore(self, seq: Sequence, checkpoint: Copy) -> bool:
        """Put the checkpoint's state into `seq`, which begins with its tokens; without room empty it: False."""
        if self.memory == "recurrent":
            self._cache.cut(seq.number, 0)
        return self.spill.restore(checkpoint, seq.number)

    def _cut_back(self, seq: Sequence, length: int) -> None:
        """Cut `seq` to `length`, with a checkpoint where that takes one; without one it may end up empty."""
        checkpoint = self._checkpoint(seq, length)
        lost = checkpoint and not self._restore(seq, checkpoint)
        self.cut(seq, 0 if lost else length)

    def vacant(self) -> Sequence | None:
        """An empty sequence, evicting a parked one if need be; None when all are busy."""
        while True:
            for seq in self.sequences:
                if not seq.busy and not seq.tokens:
                    return seq
            if not self.evict():
                return None

    def _put_away(self, seq: Sequence) -> None:
        """Empty `seq`; a copy goes to the spill."""
        self.spill.add(seq.number, seq.tokens, seq.key)
        self.clear(seq)

    def _parked(self) -> Iterator[Sequence]:
        """Parked sequences, the least recently parked first."""
        parked = (seq for seq in self.sequences if not seq.busy and seq.tokens)
        return iter(sorted(parked, key=lambda seq: seq.parked_at))

    def _split(self, seq: Sequence, length: int) -> None:
        """Make a border between spans at `length`, for every sequence that holds the span there.

        This looks at all spans of all sequences. It is cheap enough: it happens when a prompt begins or a sequence is
        cut, not with every token, and sequences have as many spans as other prompts parted from them, which are few.
        """
        start = 0
        for span in seq.spans:
            if start < length < start + span.size:
                rest = Span(start + span.size - length, span.owners)
                span.size = length - start
                for owner in self.sequences:
                    for i, other in enumerate(owner.spans):
                        if other is span:
                            owner.spans.insert(i + 1, rest)
                            break
                return
            start += span.size

    def _release(self, span: Span) -> None:
        span.owners -= 1
        if not span.owners:
            self.used -= span.size
