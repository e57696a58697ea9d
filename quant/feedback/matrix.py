"""Quantizes rows of a matrix with error feedback: what is kept small is the error of its products with its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quant.errors import BadValues, WrongShape
from quant.feedback.factor import GramFactor
from quant.feedback.panels import refine_panel, round_panel
from quant.feedback.products import PANEL, multiply, tiled, untiled
from quant.feedback.traits import TRAITS, Traits
from quant.kernels.blocks import largest, pack
from quant.kernels.formats import Bytes, Floats, registered
from quant.kernels.vectors.simd import LANES
from quant.types import QuantType

# Rows that a thread takes at a time.
_ROWS = 256
# How often all super-blocks are refined, and how often a super-block's parts in turn each time.
ROUNDS, SWEEPS = 2, 2
_LEAST_WEIGHT = 1e-5


class Feedback(Protocol):
    """The statistics of a model's inputs, matrix by matrix."""

    @property
    def entries(self) -> Mapping[str, Any]:
        """GGUF entries of a file that was made with it; no two of them share all."""

    def factor(self, name: str) -> GramFactor | None:
        """The factor of a tensor's Gram matrix, from any thread; None where its inputs are not known."""


def quantize(rows: NDArray[Any], type: QuantType, factor: GramFactor, threads: int = 1, rounds: int = ROUNDS) -> Bytes:
    """Blocks of `type`, one of `TRAITS`, for rows [r, n] whose inputs have the Gram matrix of `factor`.

    rows: float32, float16, or uint16 holding BF16 bit patterns. Returns uint8[r, row_bytes]; the bytes do not depend on
    `threads`. Raises WrongShape, BadValues for NaN or infinity in the rows.
    """
    if rows.ndim != 2 or rows.shape[1] != len(factor.power) or rows.shape[1] % type.block:
        raise WrongShape(f"rows of shape {rows.shape} do not fit a Gram matrix of {len(factor.power)} columns")
    starts = range(0, len(rows), _ROWS)
    out = np.empty((len(rows), type.row_bytes(rows.shape[1])), np.uint8)

    def work(start: int) -> None:
        part = rows[start : start + _ROWS]
        whole = (part.astype(np.uint32) << 16).view(np.float32) if part.dtype == np.uint16 else part.astype(np.float32)
        if not np.isfinite(whole).all():
            raise BadValues("the rows hold NaN or infinity")
        out[start : start + _ROWS] = _Rows(whole, type, factor).blocks(rounds)

    if threads <= 1 or len(starts) <= 1:
        for start in starts:
            work(start)
        return out
    with ThreadPoolExecutor(min(threads, len(starts))) as pool:
        list(pool.map(work, starts))
    return out


class _Panel:
    """A panel's place, and the scales of its blocks for all tiles of some rows, as `traits.py` has them."""

    def __init__(self, factor: GramFactor, first: int, traits: Traits) -> None:
        n = len(factor.order)
        self.first, self.end = first, min(first + PANEL, n)
        columns = factor.order[self.first : self.end]
        self.base = int(columns.min())
        self.columns = columns - self.base
        self.group_of = (self.columns // traits.group).astype(np.int32)
        self.block_of = (self.columns // traits.block).astype(np.int32)
        self.members = np.argsort(self.group_of, kind="stable").astype(np.int32)
        self.numbers = np.arange(self.width, dtype=np.int32)
        self.scales: tuple[Floats, ...] = ()

    @property
    def width(self) -> int:
        """Columns of the panel."""
        return self.end - self.first


class _Rows:
    """Some rows on their way to blocks."""

    def __init__(self, rows: Floats, type: QuantType, factor: GramFactor) -> None:
        self.type, self.factor, self.traits, self.count = type, factor, TRAITS[type], len(rows)
        self.n = rows.shape[1]
        limit = np.float32(largest(type))
        self.target = tiled(np.clip(rows, -limit, limit)[:, factor.order])
        self.tiles = len(self.target)
        self.error, self.chosen = np.zeros_like(self.target), np.zeros_like(self.target)
        self.panels = [_Panel(factor, first, self.traits) for first in range(0, self.n, PANEL)]
        self.values = self.traits.values
        self.ends = (float(self.values[0]), float(self.values[-1]), self.traits.near)
        self.products = np.empty(self.tiles * PANEL * LANES, np.float32)

    def blocks(self, rounds: int) -> Bytes:
        """Round, refine, pack."""
        for panel in reversed(self.panels):
            self._round(panel)
        for _ in range(rounds):
            for panel in reversed(self.panels):
                self._refine(panel)
        return self._packed()

    def _round(self, panel: _Panel) -> None:
        later = self.factor.coefficients[panel.end :]
        first, end, width = panel.first, panel.end, panel.width
        multiply(self.error.reshape(-1), self.n, end, self.n, later, first, width, self.products)
        x = self.products.reshape(self.tiles, PANEL, LANES)
        x[:, :width] = self.target[:, first:end] - x[:, :width]
        panel.scales = self._search(panel, x[:, :width])
        own = np.ascontiguousarray(self.factor.coefficients[first:end, first:end]).reshape(-1)
        round_panel(
            self.products, self.target.reshape(-1), self.error.reshape(-1), self.chosen.reshape(-1), self.n, first, own,
            panel.numbers, panel.group_of, panel.block_of, *panel.scales, *self.ends,
        )  # fmt: skip

    def _search(self, panel: _Panel, x: Floats) -> tuple[Floats, ...]:
        """Codes, lows, d and e for what is to be rounded, as vectors of 16 rows."""
        rows = np.empty((self.tiles * LANES, panel.width), np.float32)
        rows[:, panel.columns] = untiled(x)
        power = self.factor.power[panel.base : panel.base + panel.width]
        found = rows.reshape(-1, self.type.block)
        squares = found**2
        spread = np.sqrt(2 * squares.mean(axis=1, keepdims=True) + squares)
        weight = spread * np.tile(power, len(rows)).reshape(found.shape)
        weight /= np.maximum(weight.mean(axis=1, keepdims=True), np.float32(1e-30))
        parts = registered(self.type).search(found, np.maximum(weight, np.float32(_LEAST_WEIGHT)))
        codes, lows, d, e = (each.reshape(len(rows), -1) for each in self.traits.scales(parts))
        return tuple(tiled(each).reshape(-1) for each in (codes, lows, d, e))

    def _refine(self, panel: _Panel) -> None:
        first, end = panel.first, panel.end
        curvature = self.factor.curvature
        multiply(self.error.reshape(-1), self.n, 0, self.n, curvature, first, panel.width, self.products)
        own = np.ascontiguousarray(curvature[first:end, first:end])
        even = np.zeros((panel.width // self.traits.group, panel.width), np.float32)
        np.add.at(even, panel.group_of, own)
        limits = np.array([*self.traits.codes, *self.traits.low], np.float32)
        refine_panel(
            self.products, self.target.reshape(-1), self.error.reshape(-1), self.chosen.reshape(-1), self.n, first,
            own.reshape(-1), even.reshape(-1), panel.members, panel.numbers, panel.group_of, panel.block_of,
            *panel.scales, *self.ends, limits, SWEEPS,
        )  # fmt: skip

    def _packed(self) -> Bytes:
        per_block = self.type.block
        out = np.empty((self.tiles * LANES, self.n // per_block, self.type.block_bytes), np.uint8)
        for panel in self.panels:
            values = np.empty((len(out), panel.width), np.float32)
            values[:, panel.columns] = untiled(self.chosen[:, panel.first : panel.end])
            codes, lows, d, e = (untiled(each.reshape(self.tiles, -1, LANES)) for each in panel.scales)
            blocks = panel.width // per_block
            parts = self.traits.parts(
                values.reshape(-1, per_block), codes.reshape(d.size, -1), lows.reshape(d.size, -1), d.ravel(), e.ravel()
            )
            at = panel.base // per_block
            out[:, at : at + blocks] = pack(self.type, parts).reshape(len(out), blocks, -1)
        return out.reshape(len(out), -1)[: self.count]
