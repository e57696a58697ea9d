"""How IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ1_S and IQ1_M lie in memory, and what the parts stand for.

In all of them eight (IQ1, IQ2) or four (IQ3) elements share one index into a grid of vectors, a table that belongs to
the format. Signs are apart from it in IQ2 and IQ3: one bit for each element, or seven for eight elements with the
eighth such that the number of set bits is even. Source of the layouts: `block_iq2_xxs` … `block_iq1_m` in llama.cpp's
ggml-common.h and the functions `dequantize_row_iq*` in ggml-quants.c. The tables are in `grids.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.kernels.formats import Bytes, Floats, Parts, halves, put_half
from quant.kernels.layouts.grids import grid_vectors
from quant.kernels.layouts.whole import Layout, nibbles
from quant.types import QuantType

# Added to every level of a group (IQ1_S) or vector (IQ1_M), or taken off where its bit is set.
SHIFT = np.float32(0.125)


def _whole_signs(seven: NDArray[Any]) -> Bytes:
    """Seven bits and the eighth that makes their number even."""
    whole: Bytes = (seven | (np.bitwise_count(seven) & 1) << 7).astype(np.uint8)
    return whole


def _signs_and_scales(parts: Parts) -> Bytes:
    """A little-endian word for each group of 32: four times seven signs, and four bits of scale on top."""
    seven = (parts.signs & 127).astype(np.uint32).reshape(-1, 8, 4)
    words = np.bitwise_or.reduce(seven << np.array([0, 7, 14, 21], np.uint32), axis=2)
    words |= parts.scales.astype(np.uint32) << 28
    return np.ascontiguousarray(words).view(np.uint8).reshape(-1, 8, 4)


def _from_signs_and_scales(raw: Bytes) -> tuple[Bytes, Bytes]:
    words = np.ascontiguousarray(raw).view(np.uint32)
    seven = words.reshape(-1, 8, 1) >> np.array([0, 7, 14, 21], np.uint32) & np.uint32(127)
    return _whole_signs(seven).reshape(-1, 32), (words >> 28).astype(np.uint8)


def _pairs(scales: Bytes) -> Bytes:
    """Two scales to a byte."""
    pairs: Bytes = scales[:, ::2] | scales[:, 1::2] << 4
    return pairs


def _pack_iq2_xxs(parts: Parts, out: Bytes) -> None:
    """66 bytes: d; for each 32 elements four indices and a word of signs and scale."""
    put_half(out, 0, parts.d)
    groups = out[:, 2:].reshape(-1, 8, 8)
    groups[:, :, :4] = parts.levels.reshape(-1, 8, 4)
    groups[:, :, 4:] = _signs_and_scales(parts)


def _unpack_iq2_xxs(blocks: Bytes) -> Parts:
    groups = np.ascontiguousarray(blocks[:, 2:]).reshape(-1, 8, 8)
    signs, scales = _from_signs_and_scales(groups[:, :, 4:].reshape(-1, 32))
    levels = groups[:, :, :4].reshape(-1, 32).astype(np.uint16)
    return Parts(levels, halves(blocks, 0), scales=scales, signs=signs)


def _pack_iq2_xs(parts: Parts, out: Bytes) -> None:
    """74 bytes: d, 32 × (nine bits of index, seven signs), 16 scales of four bits."""
    put_half(out, 0, parts.d)
    words = parts.levels | (parts.signs & np.uint8(127)).astype(np.uint16) << 9
    out[:, 2:66] = words.view(np.uint8).reshape(-1, 64)
    out[:, 66:] = _pairs(parts.scales)


def _unpack_iq2_xs(blocks: Bytes) -> Parts:
    words = np.ascontiguousarray(blocks[:, 2:66]).view(np.uint16)
    signs, levels = _whole_signs(words >> 9), words & np.uint16(511)
    return Parts(levels, halves(blocks, 0), scales=nibbles(blocks[:, 66:], 1), signs=signs)


def _pack_iq2_s(parts: Parts, out: Bytes) -> None:
    """82 bytes: d, 32 × eight bits of index, 32 × eight signs, 8 × four tops of indices, 16 scales of four bits."""
    put_half(out, 0, parts.d)
    out[:, 2:34] = parts.levels & np.uint16(255)
    out[:, 34:66] = parts.signs
    tops = (parts.levels >> 8).astype(np.uint8).reshape(-1, 8, 4) << np.array([0, 2, 4, 6], np.uint8)
    out[:, 66:74] = np.bitwise_or.reduce(tops, axis=2)
    out[:, 74:] = _pairs(parts.scales)


def _unpack_iq2_s(blocks: Bytes) -> Parts:
    tops = (blocks[:, 66:74, None] >> np.array([0, 2, 4, 6], np.uint8) & np.uint8(3)).reshape(-1, 32)
    levels = blocks[:, 2:34] | tops.astype(np.uint16) << 8
    return Parts(levels, halves(blocks, 0), scales=nibbles(blocks[:, 74:], 1), signs=blocks[:, 34:66])


def _pack_iq3_xxs(parts: Parts, out: Bytes) -> None:
    """98 bytes: d, 64 indices, 8 words of signs and scale."""
    put_half(out, 0, parts.d)
    out[:, 2:66] = parts.levels
    out[:, 66:] = _signs_and_scales(parts).reshape(-1, 32)


def _unpack_iq3_xxs(blocks: Bytes) -> Parts:
    signs, scales = _from_signs_and_scales(blocks[:, 66:])
    return Parts(blocks[:, 2:66].astype(np.uint16), halves(blocks, 0), scales=scales, signs=signs)


def _pack_iq3_s(parts: Parts, out: Bytes) -> None:
    """110 bytes: d, 64 × eight bits of index, 64 ninth bits, 32 × eight signs, 8 scales of four bits."""
    put_half(out, 0, parts.d)
    out[:, 2:66] = parts.levels & np.uint16(255)
    out[:, 66:74] = np.packbits((parts.levels >> 8).astype(np.uint8), axis=1, bitorder="little")
    out[:, 74:106] = parts.signs
    out[:, 106:] = _pairs(parts.scales)


def _unpack_iq3_s(blocks: Bytes) -> Parts:
    ninth = np.unpackbits(blocks[:, 66:74], axis=1, bitorder="little").astype(np.uint16)
    levels = blocks[:, 2:66] | ninth << 8
    return Parts(levels, halves(blocks, 0), scales=nibbles(blocks[:, 106:], 1), signs=blocks[:, 74:106])


def _pack_iq1_s(parts: Parts, out: Bytes) -> None:
    """50 bytes: d, 32 × eight bits of index, 8 × (four times three bits of index, three of scale, shift)."""
    put_half(out, 0, parts.d)
    out[:, 2:34] = parts.levels & np.uint16(255)
    tops = (parts.levels >> 8).reshape(-1, 8, 4) << np.array([0, 3, 6, 9], np.uint16)
    words = np.bitwise_or.reduce(tops, axis=2)
    words |= parts.scales.astype(np.uint16) << 12 | parts.minima.astype(np.uint16) << 15
    out[:, 34:] = words.view(np.uint8).reshape(-1, 16)


def _unpack_iq1_s(blocks: Bytes) -> Parts:
    words = np.ascontiguousarray(blocks[:, 34:]).view(np.uint16)
    tops = (words[:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & np.uint16(7)).reshape(-1, 32)
    scales, minima = (words >> 12 & np.uint16(7)).astype(np.uint8), (words >> 15).astype(np.uint8)
    return Parts(blocks[:, 2:34] | tops << 8, halves(blocks, 0), scales=scales, minima=minima)


def _pack_iq1_m(parts: Parts, out: Bytes) -> None:
    """56 bytes: 32 × eight bits of index, 32 × (three more, shift), 4 × (four scales of three bits, 4 bits of d)."""
    out[:, :32] = parts.levels & np.uint16(255)
    out[:, 32:48] = _pairs((parts.levels >> 8).astype(np.uint8) | parts.minima << 3)
    scales = parts.scales.astype(np.uint16).reshape(-1, 4, 4) << np.array([0, 3, 6, 9], np.uint16)
    quarters = parts.d.view(np.uint16)[:, None] >> np.array([0, 4, 8, 12], np.uint16) & np.uint16(15)
    words = np.bitwise_or.reduce(scales, axis=2) | quarters << 12
    out[:, 48:] = words.view(np.uint8).reshape(-1, 8)


def _unpack_iq1_m(blocks: Bytes) -> Parts:
    tops = nibbles(blocks[:, 32:48], 1)
    words = np.ascontiguousarray(blocks[:, 48:]).view(np.uint16)
    scales = (words[:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & np.uint16(7)).astype(np.uint8).reshape(-1, 16)
    d = np.bitwise_or.reduce(words >> 12 << np.array([0, 4, 8, 12], np.uint16), axis=1).view(np.float16)
    return Parts(blocks[:, :32] | (tops & np.uint8(7)).astype(np.uint16) << 8, d, scales=scales, minima=tops >> 3)


def _scaled(type: QuantType, parts: Parts, scale: Floats) -> Floats:
    """Each group's scale times its vectors, times their signs."""
    values = grid_vectors(type)[parts.levels].reshape(len(parts.levels), scale.shape[1], -1)
    signs = np.unpackbits(parts.signs, axis=1, bitorder="little")
    result: Floats = (scale[:, :, None] * values).reshape(-1, 256) * np.where(signs == 1, np.float32(-1), np.float32(1))
    return result


def _restorer(type: QuantType, factor: float) -> Callable[[Parts], Floats]:
    """d·(1/2 + scale)·factor·vector."""

    def restore(parts: Parts) -> Floats:
        codes = np.float32(0.5) + parts.scales.astype(np.float32)
        return _scaled(type, parts, parts.d.astype(np.float32)[:, None] * codes * np.float32(factor))

    return restore


def _restore_shifted(parts: Parts) -> Floats:
    """d·(2·scale + 1)·(vector ± 1/8)."""
    scale = parts.d.astype(np.float32)[:, None] * (2 * parts.scales.astype(np.float32) + 1)
    vectors = grid_vectors(QuantType.IQ1_S)[parts.levels]
    shifts = np.where(parts.minima == 1, -SHIFT, SHIFT).repeat(32 // parts.minima.shape[1], axis=1)
    values = (vectors + shifts[:, :, None]).reshape(len(parts.levels), scale.shape[1], -1)
    result: Floats = scale[:, :, None] * values
    return result.reshape(-1, 256)


LAYOUTS = {
    QuantType.IQ2_XXS: Layout(_pack_iq2_xxs, _unpack_iq2_xxs, _restorer(QuantType.IQ2_XXS, 0.25)),
    QuantType.IQ2_XS: Layout(_pack_iq2_xs, _unpack_iq2_xs, _restorer(QuantType.IQ2_XS, 0.25)),
    QuantType.IQ2_S: Layout(_pack_iq2_s, _unpack_iq2_s, _restorer(QuantType.IQ2_S, 0.25)),
    QuantType.IQ3_XXS: Layout(_pack_iq3_xxs, _unpack_iq3_xxs, _restorer(QuantType.IQ3_XXS, 0.5)),
    QuantType.IQ3_S: Layout(_pack_iq3_s, _unpack_iq3_s, _restorer(QuantType.IQ3_S, 2.0)),
    QuantType.IQ1_S: Layout(_pack_iq1_s, _unpack_iq1_s, _restore_shifted),
    QuantType.IQ1_M: Layout(_pack_iq1_m, _unpack_iq1_m, _restore_shifted),
}
