"""The book of the cache against a cache made of sets: cells in use, prefixes found, nobody's tokens lost."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from itertools import takewhile

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.cache.pool import CellPool
from runtime.cache.spill import Spill, common_prefix


def same(a: Iterable[int], b: Iterable[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


class Cells:
    """What llama.cpp does: cells with owners."""

    def __init__(self, sequences: int) -> None:
        self.next = 0
        self.held: list[list[int]] = [[] for _ in range(sequences)]

    def copy(self, source: int, target: int, end: int) -> None:
        assert not self.held[target]
        self.held[target] = self.held[source][:end]

    def cut(self, sequence: int, start: int) -> bool:
        del self.held[sequence][start:]
        return True

    def shift(self, sequence: int, keep: int, gone: int) -> bool:
        del self.held[sequence][keep : keep + gone]
        return True

    def add(self, sequence: int, count: int) -> None:
        self.held[sequence] += range(self.next, self.next + count)
        self.next += count

    @property
    def used(self) -> int:
        return len({cell for cells in self.held for cell in cells})


def plain_pool(cells: Cells, size: int) -> CellPool:
    """A pool without copies, as for a model whose cells can be cut."""
    return CellPool(cells, size, len(cells.held), "cells", Spill(cells, 0))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["start", "grow", "park", "evict", "cut"]),
        st.integers(0, 99),
        st.lists(st.integers(0, 2), max_size=6),
    ),
    max_size=40,
)


@settings(max_examples=300)
@given(STEPS)
def test_the_book_agrees_with_the_cells(steps: list[tuple[str, int, list[int]]]) -> None:
    cells = Cells(4)
    pool = plain_pool(cells, 1000)
    running: list = []
    for clock, (what, number, tokens) in enumerate(steps):
        values = array("i", tokens)
        if what == "start":
            source, length = pool.match(values)
            assert length == max(same(seq.tokens, tokens) for seq in pool.sequences)
            seq = pool.start(source, length)
            assert (seq is None) == (len(running) == 4)
            if seq:
                assert seq.tokens == values[:length]
                running.append(seq)
        elif what == "grow" and running:
            seq = running[number % len(running)]
            cells.add(seq.number, len(values))
            if values:
                pool.grow(seq, values)
        elif what == "cut" and running:
            pool.cut(running[number % len(running)], number % 7)
        elif what == "park" and running:
            pool.park(running.pop(number % len(running)), clock)
        elif what == "evict":
            parked = any(not seq.busy and seq.tokens for seq in pool.sequences)
            assert pool.evict() == parked
        assert pool.used == cells.used
        assert pool.busy_cells == len({cell for seq in running for cell in cells.held[seq.number]})
        assert [len(held) for held in cells.held] == [len(seq.tokens) for seq in pool.sequences]
    while pool.evict():
        pass
    for seq in running:
        pool.clear(seq)
    assert pool.used == 0


@given(st.lists(st.integers(0, 1), max_size=40), st.lists(st.integers(0, 1), max_size=40))
def test_common_prefix(a: list[int], b: list[int]) -> None:
    assert common_prefix(array("i", a), array("i", b)) == same(a, b)


def test_a_state_that_cannot_be_cut_is_dropped_whole() -> None:
    cut: list[tuple[int, int]] = []

    class Stiff(Cells):
        def cut(self, sequence: int, start: int) -> bool:
            cut.append((sequence, start))
            return start == 0

    pool = plain_pool(Stiff(2), 100)
    seq = pool.start(None, 0)
    pool.grow(seq, array("i", [1, 2, 3]))
    assert not pool.cut(seq, 2)
    assert (cut, len(seq.tokens), pool.used) == ([(0, 2), (0, 0)], 0, 0)
