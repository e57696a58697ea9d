"""The transforms of a base's weights, applied to the matrices of an adapter: A and B of a change B·A.

A transform that reorders, selects or scales rows of the weight does the same to the rows of B, and leaves A alone. One
that reorders columns does so to the columns of A. The transpose of a weight that is stored as (inputs, outputs) has
nothing to do: PEFT stores A and B by inputs and outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from quant.convert import reordering, transforms
from quant.plan import Transform

# Transforms of rows, whatever the number of columns.
_OF_ROWS = (
    transforms.PairRotaryHalves,
    transforms.EverySecondRow,
    transforms.Ungroup,
    transforms.Scale,
    transforms.ScaleBlocks,
    reordering.TileRows,
)


@dataclass(frozen=True, slots=True)
class Scaled:
    """Rows as `first` leaves them, times `factor`; float32."""

    first: Transform | None
    factor: float

    @property
    def rows(self) -> int:
        """The rows that `first` needs together."""
        return self.first.rows if self.first else 1

    def apply(self, x: np.ndarray) -> np.ndarray:
        """The shape of `first`, float32, from any type (uint16 holds the bits of BF16)."""
        found = self.first.apply(x) if self.first else x
        scaled: np.ndarray = transforms.widen(found) * np.float32(self.factor)
        return scaled


def of_rows(transform: Transform | None, rank: int) -> Transform | None:
    """The transform of B, of `rank` columns, that does to B·A what `transform` does to the weight; None for nothing.

    Raises LookupError for one that no product of two matrices can follow.
    """
    match transform:
        case None | transforms.Transpose() | reordering.TileColumns():
            return None
        case transforms.TakeRows(turned=False) | reordering.TakeBlocks():
            return replace(transform, columns=rank)
        case reordering.TakePaired(take=take):
            return replace(transform, take=replace(take, columns=rank))
    if isinstance(transform, _OF_ROWS):
        return transform
    raise LookupError(type(transform).__name__)


def of_columns(transform: Transform | None) -> Transform | None:
    """The transform of A that does to B·A what `transform` does to the columns of the weight; None for nothing."""
    return transform if isinstance(transform, reordering.TileColumns) else None


def scaled(transform: Transform | None, factor: float) -> Transform | None:
    """The transform, and all values times `factor` after it."""
    return transform if factor == 1 else Scaled(transform, factor)
