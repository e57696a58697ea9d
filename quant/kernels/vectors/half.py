"""float16 and bfloat16 in vectors, by arithmetic on float32 bits: the same on every CPU, whatever its instructions.

Rounding is to nearest, ties to even, as in IEEE 754. Finite values only.
"""

from __future__ import annotations

import numpy as np

from quant.kernels.vectors.compiler import part
from quant.kernels.vectors.simd import absolute, bits, floats, from_bits, integers, minimum, where

HALF_MAX = np.float32(65504)
_SMALLEST_NORMAL = np.float32(2.0**-14)
_SUBNORMAL_STEPS = np.float32(2.0**24)
_SUBNORMAL_STEP = np.float32(2.0**-24)


@part
def to_half(v):
    """F32 → I32: the nearest float16's bits; values beyond its range become its largest."""
    size = minimum(absolute(v), HALF_MAX)
    word = bits(size)
    normal = ((word + 0xFFF + ((word >> 13) & 1)) >> 13) - (112 << 10)
    # Adding 0.5 leaves float32 exactly the 2⁻²⁴ steps of a subnormal float16.
    subnormal = integers(((size + np.float32(0.5)) - np.float32(0.5)) * _SUBNORMAL_STEPS)
    return where(size < _SMALLEST_NORMAL, subnormal, normal) | ((bits(v) >> 16) & 0x8000)


@part
def from_half(h):
    """I32 with a float16's bits → F32."""
    size = h & 0x7FFF
    normal = from_bits((size << 13) + (112 << 23))
    value = where(size < 0x400, floats(size) * _SUBNORMAL_STEP, normal)
    return where((h & 0x8000) != 0, -value, value)


@part
def to_brain(v):
    """F32 → I32: the nearest bfloat16's bits."""
    word = bits(v)
    return (word + 0x7FFF + ((word >> 16) & 1)) >> 16
