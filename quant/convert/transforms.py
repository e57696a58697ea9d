"""Changes that weights need on their way from Hugging Face's layout to GGUF's.

Each implements `quant.plan.Reversible`, which explains `rows`. Each is a frozen dataclass, because its `repr` is a part
of a conversion's fingerprint: renaming a field makes paused pulls begin anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class PairRotaryHalves:
    """Reorders the rows of every head from Hugging Face's order to GGUF's.

    Rotary embedding turns pairs of values. `transformers` pairs row i of a head with row i + size/2, llama.cpp's
    `llama` architecture row 2i with row 2i + 1. `rows` is the size of a head, so a slab holds whole heads.
    """

    rows: int

    def apply(self, x: np.ndarray) -> np.ndarray:
        """(heads * rows, columns) of any dtype, reordered within each head."""
        halves = x.reshape(-1, 2, self.rows // 2, x.shape[-1])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(x.shape)

    def undo(self, x: np.ndarray, out: np.ndarray) -> None:
        """As `Reversible`."""
        pairs = x.reshape(-1, self.rows // 2, 2, x.shape[-1])
        out.reshape(-1, 2, self.rows // 2, x.shape[-1])[:] = pairs.swapaxes(1, 2)


@dataclass(frozen=True, slots=True)
class Transpose:
    """Transposes matrices that are stored as [inputs, outputs], as GPT-2's are, to [`rows`, `columns`]."""

    rows: int
    columns: int

    def apply(self, x: np.ndarray) -> np.ndarray:
        """(n * rows, columns), n matrices, of as many matrices stored as (columns, rows)."""
        return np.ascontiguousarray(x.reshape(-1, self.columns, self.rows).swapaxes(1, 2)).reshape(-1, self.columns)

    def undo(self, x: np.ndarray, out: np.ndarray) -> None:
        """As `Reversible`."""
        out.reshape(-1, self.columns, self.rows)[:] = x.reshape(-1, self.rows, self.columns).swapaxes(1, 2)


@dataclass(frozen=True, slots=True)
class EverySecondRow:
    """One of two matrices whose rows alternate: the even rows (`first` is 0) or the odd ones (1)."""

    first: int
    rows: int = 2

    def apply(self, x: np.ndarray) -> np.ndarray:
        """(n, columns) of (2 * n, columns)."""
        return np.ascontiguousarray(x[self.first :: 2])

    def undo(self, x: np.ndarray, out: np.ndarray) -> None:
        """As `Reversible`."""
        out.reshape(-1, x.shape[-1])[self.first :: 2] = x


@dataclass(frozen=True, slots=True)
class EverySecondValue:
    """One of two vectors whose values alternate: the even values (`first` is 0) or the odd ones (1)."""

    first: int
    rows: int = 2

    def apply(self, x: np.ndarray) -> np.ndarray:
        """(n, columns) of (2 * n, columns), of which every two rows are one stored row."""
        return np.ascontiguousarray(x.reshape(-1, 2 * x.shape[-1])[:, self.first :: 2])

    def undo(self, x: np.ndarray, out: np.ndarray) -> None:
        """As `Reversible`."""
        out.reshape(-1, 2 * x.shape[-1])[:, self.first :: 2] = x


@dataclass(frozen=True, slots=True)
class TakeTransposed:
    """One of two matrices that lie side by side in one stored as (inputs, outputs); `rows` is 0: a part is a matrix.

    The `count` columns that become its rows begin at `first` and are `step` apart; `inputs` is the length of a row.
    """

    inputs: int
    count: int
    first: int
    step: int = 1
    rows: int = 0

    def apply(self, x: np.ndarray) -> np.ndarray:
        """(count, inputs), of (inputs, outputs)."""
        end = self.first + self.step * self.count
        return np.ascontiguousarray(x.reshape(self.inputs, -1)[:, self.first : end : self.step].T)

    def undo(self, x: np.ndarray, out: np.ndarray) -> None:
        """As `Reversible`."""
        end = self.first + self.step * self.count
        out.reshape(self.inputs, -1)[:, self.first : end : self.step] = x.reshape(self.count, self.inputs).T


@dataclass(frozen=True, slots=True)
class TakeRows:
    """Rows `first` to `first + count` of every head, in a matrix that has `together` rows of `columns` for each head.

    `turned` transposes the selected rows of each head. `rows` is 0: a part is the whole matrix. It may come as one row
    of all its values; else its rows may have any length, such as the bytes of a row of blocks.
    """

    columns: int
    together: int
    first: int
    count: int
    turned: bool = False
    rows: int = 0

    def apply(self, x: np.ndarray) -> np.ndarray:
        """(heads * count, columns), or turned (heads * columns, count)."""
        columns = self.columns if len(x) == 1 else x.shape[-1]
        heads = x.reshape(-1, self.together, columns)[:, self.first : self.first + self.count]
        found = np.ascontiguousarray(heads.swapaxes(1, 2) if self.turned else heads)
        return found.reshape(-1, found.shape[-1])

    def undo(self, x: np.ndarray, out: np.ndarray) -> None:
        """As `Reversible`."""
        heads = out.reshape(-1, self.together, self.columns)[:, self.first : self.first + self.count]
        turned = x.reshape(-1, self.columns, self.count).swapaxes(1, 2) if self.turned else x
        heads[:] = turned.reshape(-1, self.count, self.columns)


@dataclass(frozen=True, slots=True)
class Ungroup:
    """Query, key and value rows that alternate from head to head, as GPT-NeoX has them, sorted into three blocks."""

    heads: int
    head: int

    @property
    def rows(self) -> int:
        """All of them."""
        return 3 * self.heads * self.head

    def apply(self, x: np.ndarray) -> np.ndarray:
        """(rows, columns): all queries, then all keys, then all values."""
        grouped = x.reshape(self.heads, 3, self.head, x.shape[-1])
        return np.ascontiguousarray(grouped.swapaxes(0, 1)).reshape(x.shape)

    def undo(self, x: np.ndarray, out: np.ndarray) -> None:
        """As `Reversible`."""
        sorted_out = x.reshape(3, self.heads, self.head, x.shape[-1])
        out.reshape(self.heads, 3, self.head, x.shape[-1])[:] = sorted_out.swapaxes(0, 1)


@dataclass(frozen=True, slots=True)
class Share:
    """Rows of one of `count` matrices of equal height that lie one upon the other; `rows` is 0: a part is them all."""

    number: int
    count: int
    rows: int = 0

    def apply(self, x: np.ndarray) -> np.ndarray:
        """(n / count, columns) of (n, columns)."""
        height = len(x) // self.count
        return x[self.number * height : (self.number + 1) * height]

    def undo(self, x: np.ndarray, out: np.ndarray) -> None:
        """As `Reversible`."""
        out.reshape(self.count, -1)[self.number] = x.reshape(-1)


@dataclass(frozen=True, slots=True)
class AddOne:
    """Adds 1, for norm weights that are stored minus 1, as Gemma's are."""

    rows: int = 1

    def apply(self, x: np.ndarray) -> np.ndarray:
        """The weights, float32, from any type (uint16 holds the bits of BF16)."""
        return widen(x) + np.float32(1)

    def undo(self, x: np.ndarray, out: np.ndarray) -> None:
        """As `Reversible`, within the rounding of the sum (2^-24 of it)."""
        np.subtract(x, np.float32(1), out=out)


@dataclass(frozen=True, slots=True)
class NegativeExponential:
    """-exp(x): the decay rates of a state-space model, which are stored as logarithms."""

    rows: int = 1

    def apply(self, x: np.ndarray) -> np.ndarray:
        """The rates, float32, from any type (uint16 holds the bits of BF16)."""
        rates: np.ndarray = np.exp(widen(x))
        return -rates

    def undo(self, x: np.ndarray, out: np.ndarray) -> None:
        """As `Reversible`, within the rounding of exponential and logarithm."""
        np.log(-x, out=out)


@dataclass(frozen=True, slots=True)
class Exponential:
    """exp(x): rates of a state that are stored as logarithms, where the graph has the sign."""

    rows: int = 1

    def apply(self, x: np.ndarray) -> np.ndarray:
        """The rates, float32, from any type (uint16 holds the bits of BF16)."""
        rates: np.ndarray = np.exp(widen(x))
        return rates

    def undo(self, x: np.ndarray, out: np.ndarray) -> None:
        """As `Reversible`, within the rounding of exponential and logarithm."""
        np.log(x, out=out)


@dataclass(frozen=True, slots=True)
class Scale:
    """Weights times a number, by which the model multiplies its inputs or outputs."""

    factor: float
    rows: int = 1

    def apply(self, x: np.ndarray) -> np.ndarray:
        """The weights, float32, from any type (uint16 holds the bits of BF16)."""
        return widen(x) * np.float32(self.factor)

    def undo(self, x: np.ndarray, out: np.ndarray) -> None:
        """As `Reversible`, within the rounding of the product."""
        np.divide(x, np.float32(self.factor), out=out)


@dataclass(frozen=True, slots=True)
class UnitRows:
    """Rows divided by their lengths, for an output that does so with its weights whenever it computes."""

    rows: int = 1

    def apply(self, x: np.ndarray) -> np.ndarray:
        """The rows, float32, from any type (uint16 holds the bits of BF16)."""
        wide = widen(x)
        scaled: np.ndarray = wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), np.float32(1e-12))
        return scaled

    def undo(self, x: np.ndarray, out: np.ndarray) -> None:
        """As `Reversible`: the lengths are lost, and the model that divides by them computes the same."""
        out[:] = x


@dataclass(frozen=True, slots=True)
class TurnBack:
    """The second half of the rows of every head negated, for heads that are rotated the other way round.

    `rows` is the size of a head. A pair of which one value is negated turns the other way.
    """

    rows: int

    def apply(self, x: np.ndarray) -> np.ndarray:
        """(heads * rows, columns), float32, from any type (uint16 holds the bits of BF16)."""
        turned = widen(x).copy()
        turned.reshape(-1, self.rows, x.shape[-1])[:, self.rows // 2 :] *= np.float32(-1)
        return turned

    def undo(self, x: np.ndarray, out: np.ndarray) -> None:
        """As `Reversible`."""
        out[:] = self.apply(x)


@dataclass(frozen=True, slots=True)
class ScaleBlocks:
    """A matrix of several blocks of rows, each times a number: block i has `counts[i]` rows and `factors[i]`."""

    counts: tuple[int, ...]
    factors: tuple[float, ...]

    @property
    def rows(self) -> int:
        """The rows of all blocks."""
        return sum(self.counts)

    def apply(self, x: np.ndarray) -> np.ndarray:
        """(rows, columns), float32, from any type (uint16 holds the bits of BF16)."""
        scaled: np.ndarray = widen(x) * np.repeat(np.array(self.factors, np.float32), self.counts)[:, None]
        return scaled

    def undo(self, x: np.ndarray, out: np.ndarray) -> None:
        """As `Reversible`, within the rounding of the product."""
        np.divide(x, np.repeat(np.array(self.factors, np.float32), self.counts)[:, None], out=out)


def widen(x: np.ndarray) -> np.ndarray:
    """Any float type, or the bits of BF16 as uint16, as float32."""
    if x.dtype == np.uint16:
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32)
