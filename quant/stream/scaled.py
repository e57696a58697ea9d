"""Quantized weights of a source, whose scales are another tensor: converted to MXFP4 blocks of GGUF, or to float32.

MXFP4 (OCP Microscaling Formats, v1.0) in gpt-oss: a byte holds two neighbouring elements, the first in its lower half,
and every 32 elements share a power of two (E8M0). GGUF has the same numbers in another order, so a level that wants
MXFP4 gets them without loss. FP8 is E4M3. DeepSeek, MiniMax and Qwen have a scale for every square of 128 by 128,
Mistral has one scale for a whole matrix. Sources: `integrations/mxfp4.py` and `integrations/finegrained_fp8.py` of
transformers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import quant
from quant.errors import BadValues
from quant.types import QuantType


class ScaledType(NamedTuple):
    """A type of weights with scales: `per_byte` elements in a byte, each scale of the safetensors type `scale`.

    A scale belongs to a rectangle of `rows` by `columns` elements; 0 for both: to the whole matrix.
    """

    per_byte: int
    scale: str
    rows: int
    columns: int


SQUARE = 128
# The types by `TensorPlan.dtype`. A type that GGUF has as well bears GGUF's name: so the pass knows what it can copy.
SCALED = {
    QuantType.MXFP4.name: ScaledType(2, "U8", 1, 32),
    "FP8 in squares": ScaledType(1, "F32", SQUARE, SQUARE),
    "FP8 in squares, BF16": ScaledType(1, "BF16", SQUARE, SQUARE),
    "FP8": ScaledType(1, "F32", 0, 0),
    "FP8, BF16": ScaledType(1, "BF16", 0, 0),
}
# The numpy dtype in which scales are read, by their safetensors type; BF16 as its bits.
NUMPY = {"U8": "u1", "F32": "<f4", "BF16": "<u2"}
# The E8M0 code of NaN.
_NAN = 255


def _e4m3() -> np.ndarray:
    """float32[256], the value of each E4M3 code: one bit of sign, four of exponent, three of mantissa; no infinity."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    size = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    size[code & 127 == 127] = np.nan
    return np.where(code < 128, size, -size).astype(np.float32)


_E4M3 = _e4m3()


def as_matrices(dtype: str, columns: int, elements: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The flat `elements` and `scales` of a part whose rows have `columns` values, as matrices.

    Returns uint8[rows, columns / per_byte] and a matrix [rows / `ScaledType.rows`, columns / `ScaledType.columns`],
    both quotients rounded up; [1, 1] for a type with one scale.
    """
    kind = SCALED[dtype]
    groups = -(-columns // kind.columns) if kind.columns else 1
    return elements.reshape(-1, columns // kind.per_byte), scales.reshape(-1, groups)


def mxfp4_blocks(elements: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """GGUF's blocks, uint8[rows, bytes], of MXFP4 weights from `as_matrices`; BadValues when a scale is NaN."""
    from quant.kernels import blocks as kernels
    from quant.kernels.formats import Parts

    if (scales == _NAN).any():
        raise BadValues("a scale is no number")
    rows = len(elements)
    levels = np.empty((scales.size, 32), np.uint8)
    pairs = np.ascontiguousarray(elements).reshape(-1, 16)
    levels[:, ::2], levels[:, 1::2] = pairs & 15, pairs >> 4
    packed = kernels.pack(QuantType.MXFP4, Parts(levels, scales=np.ascontiguousarray(scales).reshape(-1, 1)))
    return packed.reshape(rows, -1)


def restore(dtype: str, elements: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The values of weights from `as_matrices`: float32[rows, columns]."""
    if dtype == QuantType.MXFP4.name:
        whole: np.ndarray = quant.dequantize(mxfp4_blocks(elements, scales), QuantType.MXFP4, scales.shape[1] * 32)
        return whole
    kind, factors = SCALED[dtype], scales
    if scales.dtype == np.uint16:
        factors = (scales.astype(np.uint32) << 16).view(np.float32)
    found: np.ndarray = _E4M3[elements]
    if not kind.rows:
        found *= factors
        return found
    for row, group in enumerate(factors):
        wide: Any = np.repeat(group, kind.columns)[: found.shape[1]]
        found[row * kind.rows : (row + 1) * kind.rows] *= wide
    return found
