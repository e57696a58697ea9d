"""Copies of sequences in plain memory: conversations that left the KV cache, and checkpoints of recurrent states.

Each step looks at every KV cache cell in use, whether its sequence runs or is parked. Copying the cells of a thousand
tokens takes milliseconds; computing them again takes seconds. So the pool hands over the sequences that it has to drop,
and most of the parked ones.

A recurrent state belongs to the last token read, and cannot go back to an earlier position. For recurrent and hybrid
models, checkpoints are therefore copied at positions where later prompts may differ from the one being read. A hybrid
model's checkpoint is its recurrent state alone, some kilobytes per layer, because its attention cells can be cut at any
position. A recurrent model has nothing but the state, so that each of its copies serves as a checkpoint as well.

Copies have llama.cpp's own format (`llama_state_seq_get_data_ext`). llama.cpp does not check it when it reads one back,
so a copy never leaves this process.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterable
from typing import NamedTuple, Protocol

from runtime.llama.model import Memory

# Shorter sequences are recomputed as fast as they are copied.
WORTH_KEEPING = 32
# Checkpoints per conversation; the least recently used goes first.
CHECKPOINTS = 8


class States(Protocol):
    """The states of sequences: `runtime.llama.context.Context`. `partial` means the recurrent state alone."""

    def save(self, sequence: int, partial: bool, /) -> bytearray:
        """A copy of a sequence's state."""

    def state_bytes(self, sequence: int, partial: bool, /) -> int:
        """The size of that copy."""

    def restore(self, sequence: int, state: bytearray, partial: bool, /) -> bool:
        """Fill an empty sequence from a copy, or replace its recurrent state; False when there is no room."""


class Copy(NamedTuple):
    """A copy of a sequence: the tokens it had read, and its state (`partial`: the recurrent state alone).

    `key` is the sequence's (`runtime/cache/pool.py`): a copy serves only texts of the same key.
    """

    tokens: array[int]
    state: bytearray
    partial: bool = False
    key: Hashable = ()


class Spill:
    """Holds at most `limit` bytes of copies; the least recently used goes first. `used` is their bytes now."""

    def __init__(self, states: States, limit: int, memory: Memory = "cells", window: int = 0) -> None:
        """`window` is the model's sliding window in tokens, 0 for none.

        When a sequence is longer than the window, llama.cpp saves only the cells that the window still covers. A prompt
        that parts from the copy earlier would miss the other cells, and llama.cpp does not report that. So such a
        sequence is not copied.
        """
        self._states = states
        self._window = window
        self.limit = limit
        self._memory = memory
        self._copies: list[Copy] = []  # the least recently used first
        self.used = 0

    def add(self, sequence: int, tokens: array[int], key: Hashable = ()) -> None:
        """Copy a sequence that holds `tokens`, if it is worth it and fits.

        Copies of its beginnings are dropped: this one serves for them. Nothing is done where a copy serves already.
        """
        if not self._worth_it(tokens) or any(self._serves(copy.tokens, tokens) for copy in self._whole(key)):
            return
        for copy in [copy for copy in self._whole(key) if self._serves(tokens, copy.tokens)]:
            self._drop(copy)
        self._save(sequence, tokens, key, partial=False)

    def add_checkpoint(self, sequence: int, tokens: array[int], key: Hashable = ()) -> None:
        """Make a checkpoint of a sequence that has read `tokens` and nothing more."""
        chain = [copy for copy in self._checkpoints(key) if _begins(tokens, copy.tokens)]
        if not self._worth_it(tokens) or any(len(copy.tokens) == len(tokens) for copy in chain):
            return
        if len(chain) >= CHECKPOINTS:
            self._drop(chain[0])
        self._save(sequence, tokens, key, partial=self._memory == "hybrid")

    def match(self, tokens: array[int], key: Hashable = ()) -> tuple[Copy | None, int]:
        """The copy with the longest usable beginning of `tokens`, and that beginning's length."""
        best, length = None, 0
        for copy in self._whole(key):
            common = common_prefix(copy.tokens, tokens)
            if common > length and (usable := self.usable(copy.tokens, common, key)) > length:
                best, length = copy, usable
        return best, length

    def usable(self, tokens: array[int], common: int, key: Hashable = ()) -> int:
        """How many of its first `common` tokens another sequence can take over from one that holds `tokens`.

        Cells are usable up to any position. A recurrent state is usable at the end of `tokens`, and at checkpoints.
        """
        if common == len(tokens) or self._memory == "cells":
            return common
        checkpoint = self.latest_checkpoint(tokens, common, key)
        return len(checkpoint.tokens) if checkpoint else 0

    def latest_checkpoint(self, tokens: array[int], common: int, key: Hashable = ()) -> Copy | None:
        """The longest checkpoint whose tokens are a beginning of the first `common` of `tokens`."""
        fits = [copy for copy in self._checkpoints(key) if len(copy.tokens) <= common]
        fits = [copy for copy in fits if _begins(tokens, copy.tokens)]
        return max(fits, key=lambda copy: len(copy.tokens), default=None)

    def longest_prefix(self, tokens: array[int], key: Hashable = ()) -> int:
        """The longest beginning of `tokens` that any copy has read, usable or not."""
        return max((common_prefix(copy.tokens, tokens) for copy in self._copies if copy.key == key), default=0)

    def restore(self, copy: Copy, sequence: int) -> bool:
        """Restore `sequence` (an empty one, if the copy is whole); False when there is no room.

        The copy stays, as the most recently used.
        """
        for i, other in enumerate(self._copies):
            if other is copy:  # two copies may have equal tokens: one whole, one a checkpoint
                self._copies.append(self._copies.pop(i))
                break
        return self._states.restore(sequence, copy.state, copy.partial)

    def lend(self, size: int) -> bool:
        """Lower `limit` by `size` bytes until `take_back`; False, and nothing is lent, when it is smaller than that."""
        if size > self.limit:
            return False
        self.limit -= size
        while self.used > self.limit:
            self._drop(self._copies[0])
        return True

    def take_back(self, size: int) -> None:
        """Raise `limit` again by `size` bytes, or lower it where more was taken than lent (`size` is negative)."""
        self.limit += size

    def _worth_it(self, tokens: array[int]) -> bool:
        """Whether a sequence is long enough for a copy, and no cell of it lies behind the window."""
        return self.limit > 0 and len(tokens) >= WORTH_KEEPING and not 0 < self._window < len(tokens)

    def _whole(self, key: Hashable) -> Iterable[Copy]:
        return (copy for copy in self._copies if copy.key == key and not copy.partial)

    def _checkpoints(self, key: Hashable) -> Iterable[Copy]:
        copies = (copy for copy in self._copies if copy.key == key)
        return (copy for copy in copies if copy.partial or self._memory == "recurrent")

    def _serves(self, whole: array[int], beginning: array[int]) -> bool:
        """Whether a copy that holds `whole` makes one of `beginning` unnecessary."""
        return whole == beginning if self._memory == "recurrent" else _begins(whole, beginning)

    def _save(self, sequence: int, tokens: array[int], key: Hashable, *, partial: bool) -> None:
        size = self._states.state_bytes(sequence, partial)
        if size > self.limit:
            return
        while self.used + size > self.limit:
            self._drop(self._copies[0])
        copy = Copy(tokens[:], self._states.save(sequence, partial), partial, key)
        self._copies.append(copy)
        self.used += len(copy.state)

    def _drop(self, copy: Copy) -> None:
        self._copies = [other for other in self._copies if other is not copy]
        self.used -= len(copy.state)


def _begins(whole: array[int], beginning: array[int]) -> bool:
    return len(beginning) <= len(whole) and whole[: len(beginning)] == beginning


def common_prefix(a: array[int], b: array[int]) -> int:
    """How many tokens at the start of both are equal: a binary search whose comparisons run in C."""
    low, high = 0, min(len(a), len(b))
    if not high or a[0] != b[0]:
        return 0
    left, right = memoryview(a).cast("B"), memoryview(b).cast("B")
    while low < high:
        middle = (low + high + 1) // 2
        if bytes(left[4 * low : 4 * middle]) == bytes(right[4 * low : 4 * middle]):
            low = middle
        else:
            high = middle - 1
    return low
