"""The kernels for a panel, the columns of a super-block: they are rounded, then refined; 16 rows at once.

Names as in `traits.py`: a value is d·code·t + e·low. Errors are values less targets.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quant.feedback.products import PANEL, add_rows
from quant.feedback.scales import Bends, PanelScales, fit_scales
from quant.kernels.formats import Floats
from quant.kernels.search.fitting import quotient
from quant.kernels.vectors.compiler import kernel, part
from quant.kernels.vectors.simd import (
    LANES,
    any_lane,
    fma,
    gather,
    integers,
    item,
    load,
    maximum,
    minimum,
    rint,
    splat,
    store,
    where,
)

_REACH = 256  # places on either side of 0 in the table of an uneven type, in steps of a half
_FEW = 16  # columns that follow each other one by one; what they change for the others is added at once


class _Ends(NamedTuple):
    """The values of levels: the least and the largest, and the table of an uneven type, else empty."""

    least: float
    most: float
    near: Floats


@part
def _nearest(y, ends):
    """The value of a level that is nearest to y."""
    if len(ends.near) > 0:
        place = integers(minimum(maximum(rint(y * 2), -_REACH), _REACH)) + _REACH
        return gather(ends.near, place)
    return minimum(maximum(rint(y), ends.least), ends.most)


@part
def _step(t, i, scales):
    """The step and the offset of column i: d·code and e·low."""
    g, b = t * scales.groups + scales.group_of[i], t * scales.blocks + scales.block_of[i]
    return load(scales.d, b) * load(scales.codes, g), load(scales.e, b) * load(scales.lows, g)


@kernel(
    "void(float32[::1], float32[::1], float32[::1], float32[::1], int64, int64, float32[::1], int32[::1], int32[::1],"
    "int32[::1], float32[::1], float32[::1], float32[::1], float32[::1], float32, float32, float32[::1])"
)
def round_panel(
    x, target, error, chosen, n, first, factor, columns, group_of, block_of, codes, lows, d, e, least, most, near
):
    """Round the columns of a panel from the last to the first, each with the errors of those behind it.

    x: PANEL vectors a tile, the targets less what columns of later panels ask for; used up.

    target, error, chosen: `n`
    vectors a tile, of which those from `first` on belong to the panel; `chosen` gets the values of levels.
    factor: float32[width · width], the panel's own part of L. columns: 0 … width − 1.
    """
    tiles, width = len(x) // (PANEL * LANES), len(columns)
    scales = PanelScales(
        group_of, block_of, codes, lows, d, e, len(codes) // (tiles * LANES), len(d) // (tiles * LANES)
    )
    ends = _Ends(least, most, near)
    pushed = np.empty(PANEL * LANES, np.float32)
    for t in range(tiles):
        for begin in range(width - _FEW, -1, -_FEW):
            for i in range(begin + _FEW - 1, begin - 1, -1):
                s, o = _step(t, i, scales)
                level = _nearest(quotient(load(x, t * PANEL + i) - o, s), ends)
                place = t * n + first + i
                wrong = fma(s, level, o) - load(target, place)
                store(chosen, place, level)
                store(error, place, wrong)
                store(pushed, i, -wrong)
                for j in range(begin, i):
                    at = t * PANEL + j
                    store(x, at, fma(-wrong, item(factor, i * width + j), load(x, at)))
            add_rows(pushed, 0, columns, begin, _FEW, factor, width, 0, begin, x, t * PANEL)


@part
def _descend(t, n, first, slope, target, error, chosen, curvature, columns, scales, ends, changes):
    """Every level of a panel, one after the other, to the one with the least error."""
    width = len(columns)
    for begin in range(width - _FEW, -1, -_FEW):
        changed = False
        for i in range(begin + _FEW - 1, begin - 1, -1):
            s, o = _step(t, i, scales)
            place = t * n + first + i
            line = i * width
            now = load(target, place) + load(error, place)
            wanted = now - load(slope, t * PANEL + i) / item(curvature, line + i)
            old = load(chosen, place)
            level = where(s != 0, _nearest(quotient(wanted - o, s), ends), old)
            change = s * (level - old)
            store(changes, i, change)
            if any_lane(level != old):
                changed = True
                store(chosen, place, level)
                store(error, place, load(error, place) + change)
                for j in range(begin, begin + _FEW):
                    at = t * PANEL + j
                    store(slope, at, fma(change, item(curvature, line + j), load(slope, at)))
        if changed:
            add_rows(changes, 0, columns, begin, _FEW, curvature, width, 0, begin, slope, t * PANEL)
            add_rows(changes, 0, columns, begin, _FEW, curvature, width, begin + _FEW, width, slope, t * PANEL)


@part
def _bend(t, n, first, chosen, curvature, members, scales, bends):
    """Fill `bends` with what a change of each group's step does to the slope of every column."""
    width = len(members)
    size = width // scales.groups
    for g in range(scales.groups):
        for j in range(width):
            store(bends.slopes, g * PANEL + j, splat(0.0))
        add_rows(
            chosen, t * n + first, members, g * size, size, curvature, width, 0, width, bends.slopes, g * PANEL
        )  # fmt: skip


@part
def _apply(t, n, first, slope, error, chosen, scales, bends):
    """Take over the changes of all steps and offsets into errors and slopes."""
    width = len(scales.group_of)
    for i in range(width):
        g = scales.group_of[i]
        place = t * n + first + i
        change = fma(load(bends.steps, g), load(chosen, place), load(bends.offsets, g))
        store(error, place, load(error, place) + change)
    for g in range(scales.groups):
        step, offset = load(bends.steps, g), load(bends.offsets, g)
        for j in range(width):
            more = fma(step, load(bends.slopes, g * PANEL + j), load(slope, t * PANEL + j))
            store(slope, t * PANEL + j, fma(offset, item(bends.even, g * width + j), more))


@kernel(
    "void(float32[::1], float32[::1], float32[::1], float32[::1], int64, int64, float32[::1], float32[::1], int32[::1],"
    "int32[::1], int32[::1], int32[::1], float32[::1], float32[::1], float32[::1], float32[::1], float32, float32,"
    "float32[::1], float32[::1], int64)"
)
def refine_panel(
    slope, target, error, chosen, n, first, curvature, even, members, columns, group_of, block_of, codes, lows, d, e,
    least, most, near, limits, sweeps,
):  # fmt: skip
    """Lower error·H·errorᵀ by the panel's d, e, codes and levels, in turn; no step raises it.

    slope: PANEL vectors a tile, error·H of the panel's columns; used up. curvature: float32[width · width], the panel's
    own part of H.

    even: float32[groups · width], sums of its rows over each group. members: the columns, group by group. limits: the
    ends of codes and of lows, equal where they are fixed. The others as in `round_panel`.
    """
    tiles, width = len(slope) // (PANEL * LANES), len(columns)
    scales = PanelScales(
        group_of, block_of, codes, lows, d, e, len(codes) // (tiles * LANES), len(d) // (tiles * LANES)
    )
    ends = _Ends(least, most, near)
    groups = scales.groups
    room = np.empty((6, groups * LANES), np.float32)
    pairs = np.empty((2, groups * groups * LANES), np.float32)
    slopes = np.empty(groups * PANEL * LANES, np.float32)
    flat = np.zeros(groups * groups, np.float32)
    for g in range(groups):
        for i in range(width):
            flat[g * groups + group_of[i]] += even[g * width + i]
    bends = Bends(slopes, even, pairs[0], pairs[1], flat, room[0], room[1], room[2], room[3], room[4], room[5])
    changes = np.empty(PANEL * LANES, np.float32)
    for t in range(tiles):
        for _ in range(sweeps):
            _bend(t, n, first, chosen, curvature, members, scales, bends)
            fit_scales(t, t * n + first, slope, chosen, scales, bends, limits)
            _apply(t, n, first, slope, error, chosen, scales, bends)
            _descend(t, n, first, slope, target, error, chosen, curvature, columns, scales, ends, changes)
