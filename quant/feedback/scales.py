"""The scales of a panel, fitted together for given levels: d and e of its blocks, codes and lows of its groups.

A group's step is d·code and its offset e·low. For given levels the error is a quadratic form of all steps and offsets
of the panel, small enough to be kept: its coefficients are inner products of the groups' levels by the curvature.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quant.feedback.products import PANEL
from quant.kernels.formats import Floats
from quant.kernels.search.fitting import quotient
from quant.kernels.vectors.compiler import part
from quant.kernels.vectors.half import from_half, to_half
from quant.kernels.vectors.simd import absolute, fma, item, load, maximum, minimum, rint, splat, store, where

# d and e move by at most this share at a time, and are held a little to what they are.
_FARTHEST, _HOLD = np.float32(0.3), np.float32(1e-3)


class PanelScales(NamedTuple):
    """The scales of a panel: of every tile `groups` vectors of codes and lows, `blocks` vectors of d and e."""

    group_of: NDArray[np.int32]
    """The group of each column."""
    block_of: NDArray[np.int32]
    """The block of each column."""
    codes: Floats
    lows: Floats
    d: Floats
    e: Floats
    groups: int
    blocks: int


class Bends(NamedTuple):
    """Effects of changes of a panel's steps and offsets; the fields but `even` and `flat` hold vectors of 16 rows."""

    slopes: Floats
    """[groups, PANEL]: the change of each column's slope by a group's step."""
    even: Floats
    """float32[groups · width]: the same by a group's offset, for all rows alike."""
    steps_by_steps: Floats
    """[groups, groups]: the quadratic form."""
    steps_by_offsets: Floats
    """[groups, groups], steps first."""
    flat: Floats
    """float32[groups · groups]: offsets by offsets."""
    step_slopes: Floats
    """[groups]: half of the error's derivative."""
    offset_slopes: Floats
    steps: Floats
    """[groups]: the changes."""
    offsets: Floats
    one: Floats
    """[groups]: memory for products."""
    other: Floats


@part
def _read(t, start, slope, chosen, scales, bends, affine):
    """Fill the quadratic form and its slopes; no changes yet."""
    groups, width = scales.groups, len(scales.group_of)
    for g in range(groups):
        store(bends.step_slopes, g, splat(0.0))
        store(bends.offset_slopes, g, splat(0.0))
        store(bends.steps, g, splat(0.0))
        store(bends.offsets, g, splat(0.0))
        for h in range(groups):
            store(bends.steps_by_steps, g * groups + h, splat(0.0))
            store(bends.steps_by_offsets, g * groups + h, splat(0.0))
    for i in range(width):
        h = scales.group_of[i]
        level, down = load(chosen, start + i), load(slope, t * PANEL + i)
        store(bends.step_slopes, h, fma(level, down, load(bends.step_slopes, h)))
        store(bends.offset_slopes, h, load(bends.offset_slopes, h) + down)
        for g in range(groups):
            bent = load(bends.slopes, g * PANEL + i)
            at = g * groups + h
            store(bends.steps_by_steps, at, fma(level, bent, load(bends.steps_by_steps, at)))
            if affine:
                store(bends.steps_by_offsets, at, load(bends.steps_by_offsets, at) + bent)


@part
def _change_step(g, change, scales, bends):
    """Change the step of a group."""
    groups = scales.groups
    store(bends.steps, g, load(bends.steps, g) + change)
    for h in range(groups):
        at = g * groups + h
        store(bends.step_slopes, h, fma(change, load(bends.steps_by_steps, at), load(bends.step_slopes, h)))
        store(bends.offset_slopes, h, fma(change, load(bends.steps_by_offsets, at), load(bends.offset_slopes, h)))


@part
def _change_offset(g, change, scales, bends):
    """Change the offset of a group."""
    groups = scales.groups
    store(bends.offsets, g, load(bends.offsets, g) + change)
    for h in range(groups):
        across = load(bends.steps_by_offsets, h * groups + g)
        store(bends.step_slopes, h, fma(change, across, load(bends.step_slopes, h)))
        flat = item(bends.flat, g * groups + h)
        store(bends.offset_slopes, h, fma(change, flat, load(bends.offset_slopes, h)))


@part
def _held(now, wanted):
    """The float16 next to the wanted value; the present value where that is far away."""
    near = from_half(to_half(wanted))
    return where(absolute(near - now) <= absolute(now) * _FARTHEST, near, now)


@part
def _fit_block(t, b, scales, bends, affine):
    """d and e of a block by least squares, where that lowers the error."""
    groups = scales.groups
    aa, ab, bb = splat(0.0), splat(0.0), splat(0.0)
    a, c = splat(0.0), splat(0.0)
    count = groups // scales.blocks
    for g in range(b * count, (b + 1) * count):
        code, low = load(scales.codes, t * groups + g), load(scales.lows, t * groups + g)
        a = fma(code, -load(bends.step_slopes, g), a)
        c = fma(low, -load(bends.offset_slopes, g), c)
        for h in range(b * count, (b + 1) * count):
            at = g * groups + h
            other, other_low = load(scales.codes, t * groups + h), load(scales.lows, t * groups + h)
            aa = fma(code * other, load(bends.steps_by_steps, at), aa)
            if affine:
                ab = fma(code * other_low, load(bends.steps_by_offsets, at), ab)
                bb = fma(low * other_low, item(bends.flat, at), bb)
    place = t * scales.blocks + b
    d, e = load(scales.d, place), load(scales.e, place)
    held, low_held = fma(aa, _HOLD, aa), fma(bb, _HOLD, bb)
    det = held * low_held - ab * ab
    alone = quotient(a, held)
    both = where(det > 0, quotient(a * low_held - ab * c, det), alone) if affine else alone
    change = _held(d, d + both) - d
    low_change = _held(e, e + quotient(c - ab * change, low_held)) - e if affine else splat(0.0)
    gain = change * (fma(aa, change, ab * low_change * 2) - a * 2) + low_change * (bb * low_change - c * 2)
    better = gain < 0
    change, low_change = where(better, change, 0), where(better, low_change, 0)
    store(scales.d, place, d + change)
    store(scales.e, place, e + low_change)
    for g in range(b * count, (b + 1) * count):
        _change_step(g, change * load(scales.codes, t * groups + g), scales, bends)
        if affine:
            _change_offset(g, low_change * load(scales.lows, t * groups + g), scales, bends)


@part
def _best_code(code, unit, slope, curvature, least, most):
    """The whole number in a range that multiplies `unit` with the least error."""
    by = curvature * unit * unit
    best = minimum(maximum(rint(code - quotient(slope * unit, by)), least), most)
    return where(by > 0, best, code)


@part
def fit_scales(t, start, slope, chosen, scales, bends, limits):
    """Fit all scales of a tile's panel for its levels, in turn; `bends` gets the changes of steps and offsets."""
    groups = scales.groups
    count = groups // scales.blocks
    affine = limits[2] != 0 or limits[3] != 0
    _read(t, start, slope, chosen, scales, bends, affine)
    for turn in range(3):
        for b in range(scales.blocks):
            _fit_block(t, b, scales, bends, affine)
        if turn == 2 or limits[0] == limits[1]:
            break
        for g in range(groups):
            place, block = t * groups + g, t * scales.blocks + g // count
            code, unit = load(scales.codes, place), load(scales.d, block)
            down, bent = load(bends.step_slopes, g), load(bends.steps_by_steps, g * groups + g)
            best = _best_code(code, unit, down, bent, limits[0], limits[1])
            store(scales.codes, place, best)
            _change_step(g, (best - code) * unit, scales, bends)
            if affine:
                low, low_unit = load(scales.lows, place), load(scales.e, block)
                best = _best_code(
                    low, low_unit, load(bends.offset_slopes, g), splat(item(bends.flat, g * groups + g)), limits[2],
                    limits[3],
                )  # fmt: skip
                store(scales.lows, place, best)
                _change_offset(g, (best - low) * low_unit, scales, bends)
