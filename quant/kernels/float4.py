"""MXFP4 and NVFP4: elements of four bits, a sign and one of 0, 0.5, 1, 1.5, 2, 3, 4, 6, times a scale of eight bits.

MXFP4 (OCP Microscaling Formats, v1.0) has blocks of 32, and scales that are powers of two (E8M0). NVFP4 has groups of
16, four to a block, and scales with four bits of exponent and three of mantissa (UE4M3). Values are doubled here and
scales halved, as in llama.cpp, so that values are whole numbers: 0, 1, 2, 3, 4, 6, 8, 12. Source of the layouts:
`block_mxfp4` and `block_nvfp4` in ggml-common.h.

The search runs 16 groups at a time, one in each lane. The first candidate for a group's scale brings its largest
element near the largest value. Its neighbours are tried as well, and the scale with the smallest error is kept.
"""

from __future__ import annotations

import numpy as np

from quant.kernels.formats import Bytes, Floats, Format, Parts, register
from quant.kernels.layouts import whole as layout_whole
from quant.kernels.layouts.whole import nibbles, pack_levels
from quant.kernels.search.fitting import flat_weights
from quant.kernels.vectors.compiler import kernel, part
from quant.kernels.vectors.simd import (
    HUGE,
    LANES,
    absolute,
    bits,
    fma,
    gather,
    integers,
    load,
    maximum,
    minimum,
    read_tiles,
    rint,
    splat,
    splat_int,
    store,
    tiles,
    where,
    write_tile,
)
from quant.types import QuantType

_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


def _e8m0_halves() -> Floats:
    """float32[256]: half of 2^(code − 127) for each code; code 255 (NaN) is treated as ggml treats it."""
    code = np.arange(256, dtype=np.uint32)
    return np.where(code < 2, np.uint32(0x200000) << code, (code - 1) << 23).astype(np.uint32).view(np.float32)


def _ue4m3_halves() -> Floats:
    """float32[256]: half of the value of each code. The eighth bit has no effect, and code 127 (NaN) is 0."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    value = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    return np.where(code == 127, 0, value / 2).astype(np.float32)


_E8M0, _UE4M3 = _e8m0_halves(), _ue4m3_halves()
# The least and the largest code that a search uses. Below 2 the inverse of a scale overflows; 255 and 127 are NaN.
_E8M0_CODES, _UE4M3_CODES = (2, 254), (0, 126)


@part
def _nearest(size):
    """`size`, which is not negative, rounded to the nearest of 0, 1, 2, 3, 4, 6, 8, 12."""
    coarse = where(size < 4, splat(1.0), where(size < 8, splat(2.0), splat(4.0)))
    fine = where(size < 4, splat(1.0), where(size < 8, splat(0.5), splat(0.25)))
    return minimum(rint(size * fine) * coarse, 12)


@part
def _first_power(peak):
    """The code of the scale with 4 ≤ peak / scale < 8: the rule of the format's specification."""
    return (bits(peak) >> 23) - 2


@part
def _first_mini(peak):
    """The code with the largest scale that is at most peak / 6."""
    wanted = minimum(peak * np.float32(1 / 6), 448)
    # The code is the top of the float32's bits, with another bias of the exponent; below 2⁻⁶ codes are equal steps.
    normal = (bits(wanted) >> 20) - (120 << 3)
    return where(wanted < np.float32(2.0**-6), integers(wanted * 512), normal)


@kernel("void(float32[::1], float32[::1], float32[::1], int64, int64, int64, int64, uint8[::1], uint8[::1])")
def _search(source, weights, halves, size, reach, least, largest, levels, codes):
    """Fill levels and scale codes of len(codes) groups of `size`, a multiple of 16."""
    x, w = tiles(size)
    tile = np.empty(size * LANES, np.uint8)
    for t in range(len(codes) // LANES):
        read_tiles(source, weights, t, size, x, w)
        peak = splat(0.0)
        for i in range(size):
            peak = maximum(peak, absolute(load(x, i)))
        first = _first_power(peak) if largest == 254 else _first_mini(peak)  # 254: the scales are E8M0
        best = splat(HUGE)
        best_code = where(first < least, splat_int(least), first)
        for n in range(-reach, reach + 1):
            code = first + n
            code = where(code < least, splat_int(least), where(code > largest, splat_int(largest), code))
            scale = gather(halves, code)
            inverse = where(scale > 0, splat(1.0) / scale, 0)
            error = splat(0.0)
            for i in range(size):
                v = absolute(load(x, i))
                left = fma(-scale, _nearest(v * inverse), v)
                error = fma(load(w, i) * left, left, error)
            better = error < best
            best = where(better, error, best)
            best_code = where(better, code, best_code)
        scale = gather(halves, best_code)
        inverse = where(scale > 0, splat(1.0) / scale, 0)
        store(codes, t, best_code)
        for i in range(size):
            v = load(x, i)
            q = integers(_nearest(absolute(v) * inverse))
            # 0, 1, 2, 3, 4, 6, 8, 12 → 0 … 7
            level = where(q > 4, (q >> 2) + 4, q)
            store(tile, i, level | where(v < 0, splat_int(8), splat_int(0)))
        write_tile(tile, t, size, levels)


def _run(x: Floats, weights: Floats | None, halves: Floats, reach: int, codes: tuple[int, int]) -> Parts:
    size = 32 if halves is _E8M0 else 16
    levels, scales = np.empty(x.shape, np.uint8), np.empty((len(x), x.shape[1] // size), np.uint8)
    _search(x.ravel(), flat_weights(weights), halves, size, reach, *codes, levels.ravel(), scales.ravel())
    return Parts(levels, scales=scales)


def _search_mx(x: Floats, weights: Floats | None) -> Parts:
    return _run(x, weights, _E8M0, 1, _E8M0_CODES)


def _search_nv(x: Floats, weights: Floats | None) -> Parts:
    return _run(x, weights, _UE4M3, 4, _UE4M3_CODES)


def _pack_mx(parts: Parts, out: Bytes) -> None:
    """17 bytes: the scale's code, 16 × two levels."""
    out[:, 0] = parts.scales[:, 0]
    pack_levels(parts.levels, out, 1)


def _pack_nv(parts: Parts, out: Bytes) -> None:
    """36 bytes: four codes, 32 × two levels; elements that share a byte are 8 apart."""
    out[:, :4] = parts.scales
    pairs = parts.levels.reshape(-1, 4, 2, 8)
    out[:, 4:] = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 32)


def _unpack_mx(blocks: Bytes) -> Parts:
    return Parts(nibbles(blocks[:, 1:], 16), scales=blocks[:, :1])


def _unpack_nv(blocks: Bytes) -> Parts:
    return Parts(nibbles(blocks[:, 4:], 8), scales=blocks[:, :4])


def _restore_mx(parts: Parts) -> Floats:
    """value[level]·scale."""
    values: Floats = _VALUES[parts.levels] * _E8M0[parts.scales]
    return values


def _restore_nv(parts: Parts) -> Floats:
    """value[level]·scale of the group."""
    values: Floats = _VALUES[parts.levels].reshape(-1, 4, 16) * _UE4M3[parts.scales][:, :, None]
    return values.reshape(-1, 64)


_KERNELS = (_search, *layout_whole.KERNELS)
register(QuantType.MXFP4, Format(_search_mx, _pack_mx, _unpack_mx, _restore_mx, 3.4e38), *_KERNELS)
register(
    QuantType.NVFP4, Format(_search_nv, _pack_nv, _unpack_nv, _restore_nv, 448.0 * 6), _search, *layout_whole.KERNELS
)
