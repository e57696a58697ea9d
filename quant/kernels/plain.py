"""F32, F16, BF16: kept as they are or rounded; and `widen`, through which every other family reads its input."""

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

    single, short: the bits of the source, a whole number of vectors, in the array that `kind` speaks of (the other is
    empty). Values beyond ±limit, the largest that the type can hold, are cut to it.
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
    """Round to float16 or bfloat16 bits, cut to ±limit; False when a value is not finite. A whole number of vectors."""
    bad = splat_int(0)
    for i in range(x.size // LANES):
        v = load(x, i)
        bad = bad | where((bits(v) & 0x7F800000) == 0x7F800000, splat_int(1), splat_int(0))
        if kind == HALF:
            store(out, i, to_half(v))
        else:
            store(out, i, to_brain(minimum(maximum(v, -limit), limit)))
    return not any_lane(bad != 0)


KERNELS = (widen, narrow)
