"""States of sequences in plain memory: conversations that left the pool, and checkpoints of models that cannot go back.

Every cell in use costs each step a look, its owner running or not, and copying a thousand tokens takes milliseconds
where computing them again takes seconds. So the pool hands over what it must drop, and what it holds idle.

A recurrent state is that of one position and of no earlier one, so for recurrent and hybrid models a copy is made where
later prompts may part from this one. Of a hybrid model it is the recurrent part alone, some kilobytes per layer: the
cells of attention can be cut. A recurrent model's copies are whole, so its parked states are checkpoints as well.

States are kept as llama.cpp writes them (`llama_state_seq_get_data_ext`), in this process only: it trusts them blindly.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from runtime.llama.model import Memory

# Fewer tokens are computed again as quickly.
WORTH_KEEPING = 32
# Of one conversation; beyond that the one goes which was of no use for the longest time.
CHECKPOINTS = 8


class States(Protocol):
    """Where states come from and go: `runtime.llama.context.Context`. `partial` leaves out what can be cut."""

    def save(self, sequence: int, partial: bool, /) -> bytearray:
        """The state of a sequence."""

    def state_bytes(self, sequence: int, partial: bool, /) -> int:
        """The size of it."""

    def restore(self, sequence: int, state: bytearray, partial: bool, /) -> bool:
        """Fill an empty sequence with it, or put a partial one in place; False when there is no room."""


class Copy(NamedTuple):
    """A sequence that was: its tokens and its state."""

    tokens: array[int]
    state: bytearray
    partial: bool = False


class Spill:
    """At most `limit` bytes of states, the least recently used dropped first."""

    def __init__(self, states: States, limit: int, memory: Memory = "cells", window: int = 0) -> None:
        """Of a sequence longer than `window` (0: there is none) llama.cpp writes what its end still sees, and nothing
        says what is missing where another prompt parts earlier: such ones are not kept."""
        self._states = states
        self._window = window
        self.limit = limit
        self._memory = memory
        self._entries: list[Copy] = []
        self.used = 0

    def keep(self, sequence: int, tokens: array[int]) -> None:
        """Copy out a sequence, if it is worth it and fits; what it continues is dropped, where it holds that too."""
        if not self._fit(tokens) or any(self._covers(entry.tokens, tokens) for entry in self._whole()):
            return
        for entry in [entry for entry in self._whole() if self._covers(tokens, entry.tokens)]:
            self._drop(entry)
        self._take(sequence, tokens, partial=False)

    def mark(self, sequence: int, tokens: array[int]) -> None:
        """Make a checkpoint of `sequence`, which has read `tokens`."""
        chain = [entry for entry in self._checkpoints() if _begins(tokens, entry.tokens)]
        if not self._fit(tokens) or any(len(entry.tokens) == len(tokens) for entry in chain):
            return
        if len(chain) >= CHECKPOINTS:
            self._drop(chain[0])
        self._take(sequence, tokens, partial=self._memory == "hybrid")

    def match(self, tokens: array[int]) -> tuple[Copy | None, int]:
        """The copy of a sequence that holds most of the beginning of `tokens`, and how much of that is of use."""
        best, length = None, 0
        for entry in self._whole():
            common = common_prefix(entry.tokens, tokens)
            if common > length and (usable := self.usable(entry.tokens, common)) > length:
                best, length = entry, usable
        return best, length

    def usable(self, held: array[int], common: int) -> int:
        """How much of the first `common` tokens of a sequence or copy of `held` another one can begin with."""
        if common == len(held) or self._memory == "cells":
            return common
        entry = self.checkpoint(held, common)
        return len(entry.tokens) if entry else 0

    def checkpoint(self, tokens: array[int], common: int) -> Copy | None:
        """The latest checkpoint in the first `common` of `tokens`."""
        fits = [entry for entry in self._checkpoints() if len(entry.tokens) <= common]
        fits = [entry for entry in fits if _begins(tokens, entry.tokens)]
        return max(fits, key=lambda entry: len(entry.tokens), default=None)

    def parting(self, tokens: array[int]) -> int:
        """How much of the beginning of `tokens` any copy has read, of use or not."""
        return max((common_prefix(entry.tokens, tokens) for entry in self._entries), default=0)

    def restore(self, entry: Copy, sequence: int) -> bool:
        """Copy an entry into a sequence (an empty one, if it is whole); it stays here too, as the last used."""
        for i, kept in enumerate(self._entries):
            if kept is entry:
                self._entries.append(self._entries.pop(i))
                break
        return self._states.restore(sequence, entry.state, entry.partial)

    def lend(self, size: int) -> bool:
        """Have `limit` less, for who will add it again; False, and nothing is lent, where that is not there."""
        if size > self.limit:
            return False
        self.limit -= size
        while self.used > self.limit:
            self._drop(self._entries[0])
        return True

    def _fit(self, tokens: array[int]) -> bool:
        """Whether a sequence is long enough to be worth a copy, and none of it lies behind a window."""
        return len(tokens) >= WORTH_KEEPING and not 0 < self._window < len(tokens)

    def _whole(self) -> Iterable[Copy]:
        return (entry for entry in self._entries if not entry.partial)

    def _checkpoints(self) -> Iterable[Copy]:
        return (entry for entry in self._entries if entry.partial or self._memory == "recurrent")

    def _covers(self, whole: array[int], start: array[int]) -> bool:
        return whole == start if self._memory == "recurrent" else _begins(whole, start)

    def _take(self, sequence: int, tokens: array[int], *, partial: bool) -> None:
        size = self._states.state_bytes(sequence, partial)
        if size > self.limit:
            return
        while self.used + size > self.limit:
            self._drop(self._entries[0])
        entry = Copy(tokens[:], self._states.save(sequence, partial), partial)
        self._entries.append(entry)
        self.used += len(entry.state)

    def _drop(self, entry: Copy) -> None:
        self._entries = [kept for kept in self._entries if kept is not entry]
        self.used -= len(entry.state)


def _begins(whole: array[int], start: array[int]) -> bool:
    return len(start) <= len(whole) and whole[: len(start)] == start


def common_prefix(a: array[int], b: array[int]) -> int:
    """How many tokens at their start are the same: a binary search whose comparisons run in C."""
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
