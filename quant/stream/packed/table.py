"""bitsandbytes: codes of four bits that stand for the numbers of a table, and bytes with a scale for each row.

A matrix of four bits is cut into blocks along its rows, laid end to end. Each block has a scale, and the scales may be
codes of a second table themselves. The tables come with the weights: NF4 and FP4 are two of them. Sources:
`functional.py` (`QuantState`) and `nn/modules.py` (`Linear8bitLt`) of bitsandbytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quant.errors import BadValues
from quant.plan import Transform
from quant.stream.packed.bits import looked_up, unpack_dense
from quant.stream.packed.codes import WEIGHTS, CodePacking, Scales
from quant.types import QuantType


@dataclass(frozen=True, slots=True)
class PackedTable:
    """Two codes in a byte uint8[rows * columns / 2], the first in its upper half; one scale for `block` elements.

    The scales float32[blocks] are followed by the table float32[16]. With `nested` elements to a scale of the scales,
    the first are uint8[blocks], and float32[blocks / nested] and their table float32[256] follow. So does the state,
    JSON in uint8[n], with the offset that is added to every scale.
    """

    kind: str
    rows: int
    columns: int
    block: int
    nested: int = 0
    exact: QuantType | None = None

    @property
    def name(self) -> str:
        """`NF4 of bitsandbytes`."""
        return f"{self.kind} of bitsandbytes"

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Codes, scales, table; scales of the scales, their table, state."""
        return ("u1", "u1", "<f4", "<f4", "<f4", "u1") if self.nested else ("u1", "<f4", "<f4")

    def values(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """float32[rows, columns]; BadValues where a scale or a table has what is no number."""
        scales, table = arrays[1], arrays[2]
        if self.nested:
            offset = np.float32(json.loads(arrays[5].tobytes())["nested_offset"])
            scales = arrays[4][scales] * np.repeat(arrays[3], self.nested)[: len(scales)] + offset
        if not np.isfinite(scales).all() or not np.isfinite(table).all():
            raise BadValues("a scale is no number", WEIGHTS)
        swapped = arrays[0].reshape(1, -1) >> 4 | arrays[0].reshape(1, -1) << 4
        flat = looked_up(unpack_dense(swapped, 4, swapped.size * 2), table).reshape(-1)
        whole = len(flat) // self.block * self.block
        flat[:whole].reshape(-1, self.block)[:] *= scales[: whole // self.block, None]
        if whole < len(flat):
            flat[whole:] *= scales[-1]
        return flat.reshape(self.rows, self.columns)

    def blocks(self, arrays: Sequence[np.ndarray], transform: Transform | None) -> np.ndarray:
        """No GGML type has these numbers."""
        raise NotImplementedError(self.name)


@dataclass(frozen=True, slots=True)
class PackedInt8(CodePacking):
    """Signed bytes int8[rows, columns], and the largest magnitude of each row float32[rows], which 127 stands for."""

    rows: int
    columns: int
    exact: QuantType | None

    @property
    def name(self) -> str:
        """`8-bit codes of bitsandbytes`."""
        return "8-bit codes of bitsandbytes"

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Codes, magnitudes."""
        return "i1", "<f4"

    def scales(self, arrays: Sequence[np.ndarray]) -> Scales:
        """One scale for each row."""
        factors = arrays[1].reshape(-1, 1) / np.float32(127)
        return Scales(factors, np.full(factors.shape, 128, np.int16))

    def levels(self, arrays: Sequence[np.ndarray], first: int, last: int) -> np.ndarray:
        """As `CodePacking`."""
        return (arrays[0].reshape(self.rows, self.columns)[first:last] ^ np.int8(-128)).view(np.uint8)
