"""Reorderings of the rows and columns of heads: linear attention (gated delta nets), matrices that hold several.

Each implements `quant.plan.Reversible`, as those in `transforms.py` do. Source: `conversion/qwen.py` of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quant.convert.transforms import EverySecondRow, NegativeExponential, PairRotaryHalves, Share, TakeRows, Ungroup
from quant.plan import Transform


@dataclass(frozen=True, slots=True)
class TileRows:
    """Sorts the rows of value heads, which come key head by key head: the first of each, then the second, ….

    Behind `before` rows that stay, each of `groups` key heads has `each` value heads of `head` rows.
    """

    groups: int
    each: int
    head: int
    before: int = 0

    @property
    def rows(self) -> int:
        """All of them."""
        return self.before + self.groups * self.each * self.head

    def apply(self, x: np.ndarray) -> np.ndarray:
        """(rows, columns) of any dtype, reordered."""
        values = x[self.before :].reshape(self.groups, self.each, self.head, x.shape[-1])
        return np.concatenate((x[: self.before], values.swapaxes(0, 1).reshape(-1, x.shape[-1])))

    def undo(self, x: np.ndarray, out: np.ndarray) -> None:
        """As `Reversible`."""
        out[: self.before] = x[: self.before]
        tiled = x[self.before :].reshape(self.each, self.groups, self.head, x.shape[-1])
        out[self.before :].reshape(self.groups, self.each, self.head, x.shape[-1])[:] = tiled.swapaxes(0, 1)


@dataclass(frozen=True, slots=True)
class TileColumns:
    """The same for the columns of a matrix, or for a vector with a value for each head (`head` is 1).

    The columns of a matrix may be bytes of blocks, where a head is made of whole ones.
    """

    groups: int
    each: int
    head: int = 1
    rows: int = 1

    def apply(self, x: np.ndarray) -> np.ndarray:
        """(n, columns) of any dtype, reordered."""
        head = self.head if x.shape[-1] == 1 else x.shape[-1] // (self.groups * self.each)
        values = x.reshape(-1, self.groups, self.each, head)
        return np.ascontiguousarray(values.swapaxes(1, 2)).reshape(x.shape)

    def undo(self, x: np.ndarray, out: np.ndarray) -> None:
        """As `Reversible`."""
        tiled = x.reshape(-1, self.each, self.groups, self.head)
        out.reshape(-1, self.groups, self.each, self.head)[:] = tiled.swapaxes(1, 2)


@dataclass(frozen=True, slots=True)
class TileRates:
    """Decay rates, which are stored as logarithms, a value for each value head."""

    groups: int
    each: int
    rows: int = 1

    def apply(self, x: np.ndarray) -> np.ndarray:
        """(n, heads), float32, from any type (uint16 holds the bits of BF16)."""
        return NegativeExponential().apply(TileColumns(self.groups, self.each).apply(x))

    def undo(self, x: np.ndarray, out: np.ndarray) -> None:
        """As `Reversible`, within the rounding of exponential and logarithm."""
        TileColumns(self.groups, self.each).undo(x, out)
        np.log(-out, out=out)


@dataclass(frozen=True, slots=True)
class TakeBlocks:
    """Blocks of rows from every head, block by block: the first of every head, the second of every head, ….

    A head has `together` rows of `columns`; a block is its first row and its number of rows. `rows` is 0: a part is
    the whole matrix, which comes as in `TakeRows`.
    """

    columns: int
    together: int
    blocks: tuple[tuple[int, int], ...]
    rows: int = 0

    def apply(self, x: np.ndarray) -> np.ndarray:
        """(heads * rows of the blocks, columns)."""
        columns = self.columns if len(x) == 1 else x.shape[-1]
        heads = x.reshape(-1, self.together, columns)
        taken = [heads[:, first : first + count].reshape(-1, columns) for first, count in self.blocks]
        return np.concatenate(taken)

    def undo(self, x: np.ndarray, out: np.ndarray) -> None:
        """As `Reversible`."""
        heads, begin = out.reshape(-1, self.together, self.columns), 0
        for first, count in self.blocks:
            end = begin + len(heads) * count
            heads[:, first : first + count] = x[begin:end].reshape(-1, count, self.columns)
            begin = end


@dataclass(frozen=True, slots=True)
class TakePaired:
    """Rows as `TakeRows` takes them, in the order of Llama's heads of `head` rows."""

    take: TakeRows
    head: int
    rows: int = 0

    def apply(self, x: np.ndarray) -> np.ndarray:
        """(rows, columns) of any dtype."""
        return PairRotaryHalves(self.head).apply(self.take.apply(x))

    def undo(self, x: np.ndarray, out: np.ndarray) -> None:
        """As `Reversible`."""
        halves = np.empty_like(x)
        PairRotaryHalves(self.head).undo(x, halves)
        self.take.undo(halves, out)


@dataclass(frozen=True, slots=True)
class PairRotatedPart:
    """The first `rotated` rows of every head of `rows` in the order of Llama's heads; the others stay."""

    rows: int
    rotated: int

    def apply(self, x: np.ndarray) -> np.ndarray:
        """(heads * rows, columns) of any dtype, reordered within each head."""
        paired = x.copy().reshape(-1, self.rows, x.shape[-1])
        turned = np.ascontiguousarray(paired[:, : self.rotated])
        paired[:, : self.rotated] = PairRotaryHalves(self.rotated).apply(turned)
        return paired.reshape(x.shape)

    def undo(self, x: np.ndarray, out: np.ndarray) -> None:
        """As `Reversible`."""
        out[:] = x
        heads = out.reshape(-1, self.rows, x.shape[-1])
        halves = np.empty_like(heads[:, : self.rotated])
        PairRotaryHalves(self.rotated).undo(np.ascontiguousarray(heads[:, : self.rotated]), halves)
        heads[:, : self.rotated] = halves


# Transforms that move whole rows and change nothing in them.
ROW_MOVES = (PairRotaryHalves, EverySecondRow, Ungroup, Share, TileRows, TakeBlocks, TakePaired, PairRotatedPart)


def moves_blocks(transform: Transform | None, block: int) -> bool:
    """Whether a transform moves whole blocks of `block` columns, as whole rows are, and changes nothing in them.

    It may be applied to blocks, or to codes and scales alike.
    """
    if isinstance(transform, TakeRows):
        return not transform.turned
    if isinstance(transform, TileColumns):
        return transform.head % block == 0
    return transform is None or isinstance(transform, ROW_MOVES)
