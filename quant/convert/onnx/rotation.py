"""Rotary frequencies, taken from the tables of cosines and sines that a graph has, as settings of `config.json`.

A row of the tables is a position, a column a pair of values that is turned. The cosine at position 0 is the factor of
all lengths. The angle of a pair grows evenly, so it is followed from position 1 on to twice as far at each step, until
its rounding no longer counts.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from quant.errors import MalformedFile, UnsupportedModel
from quant.plan import Files
from quant.safetensors import Entry

_NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
# The share of a frequency that may be rounding, for an angle of 1; the smaller the angle, the more.
_ROUNDED = {"F32": 3e-7, "F16": 1e-3, "BF16": 8e-3}
_WIDEST = 1 << 12  # pairs of a head
_SURE = 5  # times that is taken for rounding
_PLAIN = 1e-3  # how far the factor of lengths may be from 1


class Rotation:
    """How the pairs of a head's values are turned.

    `frequencies`: the angle of each pair from one position to the next, float64[pairs]; `doubt`: how much of it may be
    rounding. `factor` multiplies all lengths.
    """

    def __init__(self, files: Files, cosines: Entry, sines: Entry) -> None:
        """Raises MalformedFile for tables that are no cosines and sines."""
        if (
            cosines.shape != sines.shape
            or len(cosines.shape) != 2
            or cosines.dtype not in _NUMPY
            or cosines.shape[0] < 2
            or not 0 < cosines.shape[1] <= _WIDEST
        ):
            raise MalformedFile(f"`{cosines.name[:80]}` and `{sines.name[:80]}` are no tables of rotary angles")
        self._files, self._tables = files, (cosines, sines)
        first = self._row(0)
        self.factor = float(first[0].mean())
        even = np.allclose(first[0], self.factor, rtol=1e-2) and self.factor > 0
        if not even or np.abs(first[1]).max() > 1e-3:
            raise MalformedFile(f"`{cosines.name[:80]}` is no table of cosines")
        self.frequencies, position = self._followed(cosines.shape[0])
        self.doubt = _ROUNDED[cosines.dtype] * (1 + 1 / (self.frequencies * position))

    def _row(self, position: int) -> np.ndarray:
        """float64[2, pairs]: cosines and sines at a position."""
        found = []
        for table in self._tables:
            width = table.size // table.shape[0]
            raw = np.frombuffer(
                self._files.read(table.shard, table.offset + position * width, width), _NUMPY[table.dtype]
            )
            found.append((raw.astype(np.uint32) << 16).view("<f4") if table.dtype == "BF16" else raw)
        return np.stack(found).astype(np.float64)

    def _followed(self, positions: int) -> tuple[np.ndarray, int]:
        """Frequencies, and the farthest position that they were followed to."""
        position, frequencies = 1, self._angle(1)
        if (frequencies <= 0).any() or (frequencies > math.pi).any():
            raise MalformedFile(f"`{self._tables[0].name[:80]}` turns its pairs in a way that no model does")
        while position * 2 < positions and position < 1 << 12:
            position *= 2
            turns = np.round((frequencies * position - self._angle(position)) / (2 * math.pi))
            frequencies = (self._angle(position) + 2 * math.pi * turns) / position
        if (frequencies <= 0).any():
            raise MalformedFile(f"`{self._tables[0].name[:80]}` turns its pairs in a way that no model does")
        return frequencies, position

    def _angle(self, position: int) -> np.ndarray:
        cosines, sines = self._row(position)
        angles: np.ndarray = np.arctan2(sines, cosines)
        return angles


def settings(rotation: Rotation, long: Rotation | None, original: int) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`. `long` is another table for texts of more than `original` tokens."""
    theta, stretch, even = _base(rotation)
    plain = abs(rotation.factor - 1) < _PLAIN
    if long is None and even and plain:
        found: dict[str, Any] = {"rope_theta": theta, "rope_scaling": None}
        return found | ({"rope_scaling": {"rope_type": "linear", "factor": stretch}} if stretch != 1 else {})
    far = long or rotation
    if abs(far.factor / rotation.factor - 1) > _PLAIN:
        raise UnsupportedModel("its texts of more than the first length have another factor of rotation")
    # Any frequencies at all are a base and a divisor for each pair.
    pairs = np.arange(len(rotation.frequencies))
    bases = theta ** (-pairs / len(pairs))
    return {
        "rope_theta": theta,
        "rope_scaling": {
            "rope_type": "longrope",
            "short_factor": [float(each) for each in bases / rotation.frequencies],
            "long_factor": [float(each) for each in bases / far.frequencies],
            "attention_factor": 1.0 if plain else rotation.factor,
            "original_max_position_embeddings": original,
        },
    }


def _base(rotation: Rotation) -> tuple[float, float, bool]:
    """The base, the divisor of all frequencies, and whether these two say all."""
    frequencies, doubt = rotation.frequencies, rotation.doubt
    count = len(frequencies)
    pairs = np.arange(count)
    if count < 2:
        return 10000.0, _round(1 / frequencies[0], _SURE * doubt[0]), True
    # A straight line through the logarithms, by the frequencies that are known best.
    slope, first = np.polyfit(pairs / count, np.log(frequencies), 1, w=1 / doubt)
    unsure = _SURE * float((doubt[1:] * count / pairs[1:]).min())
    theta, stretch = _round(math.exp(-slope), unsure), _round(math.exp(-first), _SURE * float(doubt[0]))
    wanted = theta ** (-pairs / count) / stretch
    if (np.abs(frequencies / wanted - 1) <= 2 * unsure + _SURE * doubt).all():
        return theta, stretch, True
    # The fastest pairs are never scaled, so the second one tells the base.
    return _round(float((frequencies[1] / frequencies[0]) ** -count), _SURE * float(doubt[1]) * count), 1.0, False


def _round(value: float, near: float) -> float:
    """The roundest number that is as near; the value itself where none is."""
    for digits in range(1, 9):
        rounded = float(f"{value:.{digits}g}")
        if abs(rounded - value) <= near * value:
            return rounded
    return value
