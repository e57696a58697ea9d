"""Parked sequences in plain memory: what the pool has no room for, or what would slow it down, is copied out and back.

Every cell in use costs each step a look, its owner running or not, and copying a thousand tokens takes milliseconds
where computing them again takes seconds. So the pool hands over what it must drop, and what it holds idle. States are
kept as llama.cpp writes them (`llama_state_seq_get_data`), in this process only: it trusts them blindly.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple, Protocol

# Fewer tokens are computed again as quickly.
WORTH_KEEPING = 32


class States(Protocol):
    """Where states come from and go: `runtime.context.Context`."""

    def save(self, sequence: int, /) -> bytes:
        """The state of a sequence."""

    def state_bytes(self, sequence: int, /) -> int:
        """The size of it."""

    def restore(self, sequence: int, state: bytes, /) -> bool:
        """Fill an empty sequence with it; False when there is no room."""


class Entry(NamedTuple):
    """A sequence that was: its tokens and its state."""

    tokens: array[int]
    state: bytes


class Spill:
    """At most `limit` bytes of states, the least recently used dropped first."""

    def __init__(self, states: States, limit: int) -> None:
        self._states = states
        self.limit = limit
        self._entries: list[Entry] = []
        self.used = 0

    def keep(self, sequence: int, tokens: array[int]) -> None:
        """Copy out a sequence, if it is worth it and fits; what it continues is dropped."""
        if len(tokens) < WORTH_KEEPING or any(_begins(entry.tokens, tokens) for entry in self._entries):
            return
        size = self._states.state_bytes(sequence)
        if size > self.limit:
            return
        for entry in [entry for entry in self._entries if _begins(tokens, entry.tokens)]:
            self._drop(entry)
        while self.used + size > self.limit:
            self._drop(self._entries[0])
        entry = Entry(tokens[:], self._states.save(sequence))
        self._entries.append(entry)
        self.used += len(entry.state)

    def match(self, tokens: array[int], whole: bool) -> tuple[Entry | None, int]:
        """The entry that holds the longest beginning of `tokens`; only those that end there when `whole`."""
        best, length = None, 0
        for entry in self._entries:
            common = common_prefix(entry.tokens, tokens)
            if common > length and not (whole and common < len(entry.tokens)):
                best, length = entry, common
        return best, length

    def restore(self, entry: Entry, sequence: int) -> bool:
        """Copy an entry into an empty sequence; it stays here too, as the last used."""
        for i, kept in enumerate(self._entries):
            if kept is entry:
                self._entries.append(self._entries.pop(i))
                break
        return self._states.restore(sequence, entry.state)

    def _drop(self, entry: Entry) -> None:
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
