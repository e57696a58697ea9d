"""Weights in small floats: MXFP4, NVFP4, and FP8 with scales.

MXFP4 (OCP Microscaling Formats, v1.0) in gpt-oss: a byte holds two neighbouring elements, the first in its lower half,
and every 32 elements share a power of two (E8M0). GGUF has the same numbers in another order, so a level that wants
MXFP4 gets them without loss. FP8 is E4M3. DeepSeek, MiniMax and Qwen have a scale for every square of 128 by 128,
Mistral has one scale for a whole matrix, compressed-tensors one for each row. MXFP8 has a power of two for every 32
elements. NVFP4 has one in E4M3 for every 16, and often a scale for the whole matrix besides, for which a GGML block
has no place (`quant/convert/prequantized/apart.py`). Sources: `integrations/mxfp4.py` and
`integrations/finegrained_fp8.py` of transformers, `compressors/nvfp4` of compressed-tensors,
`mlx/backend/cpu/quantized.cpp` of MLX.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

import quant
from quant.errors import BadValues
from quant.plan import Transform
from quant.stream.packed.bits import looked_up, unpack_dense
from quant.types import QuantType

SQUARE = 128
# The numpy types in which companions are read, by their safetensors type; BF16 and small floats as their bits.
NUMPY = {"F8_E4M3": "u1", "U8": "u1", "I8": "i1", "I32": "<i4", "I64": "<i8", "F16": "<f2", "F32": "<f4", "BF16": "<u2"}
GROUP = 32
NV_GROUP = 16
# The values of the codes of four bits: a sign, two bits of exponent, one of mantissa.
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
# The E8M0 code of NaN, and the values of all codes.
_NAN = 255
_E8M0 = np.append(np.ldexp(1.0, np.arange(_NAN) - 127), np.nan).astype(np.float32)


def widened(scales: np.ndarray) -> np.ndarray:
    """Scales as float32; uint16 holds the bits of BF16, uint8 the exponent of a power of two (E8M0, 255: NaN)."""
    if scales.dtype == np.uint8:
        powers: np.ndarray = _E8M0[scales]
        return powers
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
        levels = unpack_dense(elements, 4, self.columns).reshape(-1, GROUP)
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
        found = looked_up(arrays[0].reshape(-1, self.columns), _E4M3)
        across = -(-self.columns // self.wide) if self.wide else 1
        factors = widened(arrays[1]).reshape(-1, across)
        if across == 1:
            found *= factors if self.tall in (0, 1) else np.repeat(factors, self.tall, 0)[: len(found)]
            return found
        if self.tall == 1:
            found *= np.repeat(factors, self.wide, 1)[:, : self.columns]
            return found
        for row, group in enumerate(factors):
            found[row * self.tall : (row + 1) * self.tall] *= np.repeat(group, self.wide)[: self.columns]
        return found

    def blocks(self, arrays: Sequence[np.ndarray], transform: Transform | None) -> np.ndarray:
        """No GGML type has these numbers."""
        raise NotImplementedError(self.name)


@dataclass(frozen=True, slots=True)
class PackedNvfp4:
    """NVFP4: pairs of elements uint8[rows, columns / 2], scales in E4M3 uint8[rows, columns / 16].

    A scale float32[1] of the matrix, times `whole`, multiplies all values, or divides them with −1; 0: there is none.
    """

    columns: int
    whole: float
    exact: QuantType | None
    name: str = QuantType.NVFP4.name

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Elements, scales, the matrix's scale."""
        return ("u1", "u1", "<f4") if self.whole else ("u1", "u1")

    def without_whole(self) -> PackedNvfp4:
        """The same without the matrix's scale, which stands elsewhere: blocks of GGML can then hold it."""
        exact = None if self.columns % QuantType.NVFP4.block else QuantType.NVFP4
        return replace(self, whole=0, exact=exact)

    def values(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """float32[rows, columns]; BadValues where a scale is no number."""
        found = looked_up(unpack_dense(arrays[0].reshape(1, -1), 4, arrays[0].size * 2), _E2M1).reshape(-1, NV_GROUP)
        factor = np.float32(1)
        if self.whole:
            with np.errstate(divide="ignore"):
                factor = arrays[2][0] * np.float32(self.whole) if self.whole > 0 else 1 / arrays[2][0]
        scales = _E4M3[arrays[1]] * factor
        if not np.isfinite(scales).all():
            raise BadValues("a scale is no number")
        found *= scales[:, None]
        return found.reshape(-1, self.columns)

    def blocks(self, arrays: Sequence[np.ndarray], transform: Transform | None) -> np.ndarray:
        """GGUF's blocks, uint8[rows, bytes]; BadValues where a scale is negative or no number."""
        from quant.kernels import blocks as kernels
        from quant.kernels.formats import Parts

        elements, scales = arrays[0].reshape(-1, self.columns // 2), arrays[1].reshape(-1, self.columns // NV_GROUP)
        if transform:
            elements, scales = transform.apply(elements), transform.apply(scales)
        if (scales >= 127).any():
            raise BadValues("a scale is no number")
        levels = unpack_dense(elements, 4, self.columns).reshape(-1, NV_GROUP * 4)
        packed = kernels.pack(QuantType.NVFP4, Parts(levels, scales=np.ascontiguousarray(scales).reshape(-1, 4)))
        return packed.reshape(len(elements), -1)
