"""F32, F16 and BF16: single numbers, copied or rounded; and `widen`, through which every family reads its input."""

from __future__ import annotations

from quant.kernels.formats import BRAIN, FLOAT, HALF
from quant.kernels.vectors.compiler import kernel
from quant.kernels.vectors.half import from_half, to_brain, to_half
from quant.kernels.vectors.simd import LANES, any_lane, bits, from_bits, load, maximum, minimum, splat_int, store, where


@kernel(
    "boolean(Array(uint32, 1, 'C', readonly=True), Array(uint16, 1, 'C', readonly=True), int64, float32, float32[::1])"
)
def widen(single, short, kind, limit, out):
    """Write the source as float32; False when a value is not finite.

    single: uint32[n], the bits of a float32 source; empty for others. n is a multiple of 16.
    short: uint16[n], the bits of a float16 or BF16 source; empty for float32.
    limit: the largest magnitude that the type can hold; larger values are cut to it.
    """
    bad = splat_int(0)
    for i in range((single.size if kind == FLOAT else short.size) // LANES):
        if kind == FLOAT:
            word = load(single, i)
        elif kind == BRAIN:
            word = load(short, i) << 16
        else:
            half = load(short, i)
            word = where((half & 0x7C00) == 0x7C00, splat_int(0x7F800000), bits(from_half(half)))
        bad = bad | where((word & 0x7F800000) == 0x7F800000, splat_int(1), splat_int(0))
        store(out, i, minimum(maximum(from_bits(word), -limit), limit))
    return not any_lane(bad != 0)


@kernel("boolean(Array(float32, 1, 'C', readonly=True), int64, float32, uint16[::1])")
def narrow(x, kind, limit, out):
    """Round float32[n], n a multiple of 16, to float16 or BF16 bits, cut to ±limit; False for NaN or infinity."""
    bad = splat_int(0)
    for i in range(x.size // LANES):
        v = load(x, i)
        bad = bad | where((bits(v) & 0x7F800000) == 0x7F800000, splat_int(1), splat_int(0))
        if kind == HALF:
            store(out, i, to_half(v))
        else:
            store(out, i, to_brain(minimum(maximum(v, -limit), limit)))
    return not any_lane(bad != 0)
