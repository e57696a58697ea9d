"""Weights in small floats: MXFP4, and FP8 with scales.

MXFP4 (OCP Microscaling Formats, v1.0) in gpt-oss: a byte holds two neighbouring elements, the first in its lower half,
and every 32 elements share a power of two (E8M0). GGUF has the same numbers in another order, so a level that wants
MXFP4 gets them without loss. FP8 is E4M3. DeepSeek, MiniMax and Qwen have a scale for every square of 128 by 128,
Mistral has one scale for a whole matrix, compressed-tensors one for each row. Sources: `integrations/mxfp4.py` and
`integrations/finegrained_fp8.py` of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import quant
from quant.errors import BadValues
from quant.plan import Transform
from quant.types import QuantType

SQUARE = 128
# The numpy types in which companions are read, by their safetensors type; BF16 as its bits.
NUMPY = {"U8": "u1", "I8": "i1", "I32": "<i4", "I64": "<i8", "F16": "<f2", "F32": "<f4", "BF16": "<u2"}
GROUP = 32
# The E8M0 code of NaN.
_NAN = 255


def widened(scales: np.ndarray) -> np.ndarray:
    """Scales as float32; uint16 holds the bits of BF16."""
    if scales.dtype == np.uint16:
        return (scales.astype(np.uint32) << 16).view(np.float32)
    return scales.astype(np.float32, copy=False)


def _e4m3() -> np.ndarray:
    """float32[256], the value of each E4M3 code: one bit of sign, four of exponent, three of mantissa; no infinity."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    size = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    size[code & 127 == 127] = np.nan
    return np.where(code < 128, size, -size).astype(np.float32)


_E4M3 = _e4m3()


@dataclass(frozen=True, slots=True)
class PackedMxfp4:
    """MXFP4: pairs of elements uint8[rows, columns / 2], exponents uint8[rows, columns / 32]."""

    columns: int
    name: str = QuantType.MXFP4.name
    dtypes: tuple[str, ...] = ("u1", "u1")
    exact: QuantType | None = QuantType.MXFP4

    def values(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """float32[rows, columns]; BadValues when a scale is NaN."""
        whole: np.ndarray = quant.dequantize(self.blocks(arrays, None), QuantType.MXFP4, self.columns)
        return whole

    def blocks(self, arrays: Sequence[np.ndarray], transform: Transform | None) -> np.ndarray:
        """GGUF's blocks, uint8[rows, bytes]; BadValues when a scale is NaN."""
        from quant.kernels import blocks as kernels
        from quant.kernels.formats import Parts

        elements, scales = arrays[0].reshape(-1, self.columns // 2), arrays[1].reshape(-1, self.columns // GROUP)
        if transform:
            elements, scales = transform.apply(elements), transform.apply(scales)
        if (scales == _NAN).any():
            raise BadValues("a scale is no number")
        levels = np.empty((scales.size, GROUP), np.uint8)
        pairs = np.ascontiguousarray(elements).reshape(-1, GROUP // 2)
        levels[:, ::2], levels[:, 1::2] = pairs & 15, pairs >> 4
        packed = kernels.pack(QuantType.MXFP4, Parts(levels, scales=np.ascontiguousarray(scales).reshape(-1, 1)))
        return packed.reshape(len(elements), -1)


@dataclass(frozen=True, slots=True)
class PackedFp8:
    """FP8: codes of E4M3 uint8[rows, columns], and scales of the safetensors type `scale`.

    A scale belongs to a rectangle of `tall` rows by `wide` columns; 0 stands for all of them.
    """

    columns: int
    scale: str
    tall: int = 0
    wide: int = 0
    exact: QuantType | None = None

    @property
    def name(self) -> str:
        """`FP8`."""
        return "FP8"

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Codes, scales."""
        return "u1", NUMPY[self.scale]

    def values(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """float32[rows, columns]."""
        found: np.ndarray = _E4M3[arrays[0].reshape(-1, self.columns)]
        across = -(-self.columns // self.wide) if self.wide else 1
        factors = widened(arrays[1]).reshape(-1, across)
        if across == 1:
            found *= factors if self.tall in (0, 1) else np.repeat(factors, self.tall, 0)[: len(found)]
            return found
        for row, group in enumerate(factors):
            found[row * self.tall : (row + 1) * self.tall] *= np.repeat(group, self.wide)[: self.columns]
        return found

    def blocks(self, arrays: Sequence[np.ndarray], transform: Transform | None) -> np.ndarray:
        """No GGML type has these numbers."""
        raise NotImplementedError(self.name)
