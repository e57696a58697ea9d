"""Sensitivity of a model's output to each type of each matrix: measured, for mixes (`quant/levels/harms.py`).

The divergence of the output is nearly proportional to the error of a matrix's products with its inputs while that is
small. Two things are measured. One is the error of each type, on some rows of every matrix, as the pass quantizes them.
The other is the divergence from the unchanged model while a matrix, or neighbours of one role, have a coarse type. Its
ratio to the coarse type's error is the sensitivity, which times the error of a type is the harm of that type.

harms-EFFORT.json  the harms
sensing.json       what was measured, for a process that goes on and for another effort
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.feedback.errors import InputStatistics, errors_of
from quant.feedback.stored import StoredGrams
from quant.gguf.header import TensorInfo
from quant.importance import Importance
from quant.kernels import blocks
from quant.levels.budget import candidates
from quant.levels.harms import MeasuredHarms
from quant.levels.recipes import quantizable, type_for_rows
from quant.plan import ModelPlan
from quant.types import QuantType, Tensor
from runtime.meter.kept import KeptWindow, compare, record
from runtime.meter.learning import DONE, GRAMS_FILE
from runtime.meter.passages import Passage
from runtime.meter.patching import Bytes, PatchedReader
from runtime.meter.sizes import harms_file
from runtime.small_files import replace_file

Floats = NDArray[np.float32]
Errors = dict[QuantType, float]
# The type in which a matrix is while the output is watched: coarse enough to be felt, fine enough to be proportional.
PROBE = QuantType.Q3_K
# Rows of a matrix that speak for all, matrices of a stack that speak for all, values that are quantized at a time.
_ROWS, _EXPERTS, _VALUES = 128, 4, 1 << 22
# Windows that are read in all: the fewer, the larger the model; and the most for each matrix, the least for a group.
_WORK, _LEAST, _MOST, _EACH, _GROUP = 6e10, 64, 128, 16, 2
_NOTE = "sensing.json"


def learn_harms(
    path: Path,
    passage: Passage,
    folder: Path,
    *,
    window: int,
    threads: int,
    tell: Callable[[int, int], None],
    fed: bool,
) -> MeasuredHarms:
    """Measure the harms with the model at `path`, at Q8_0 or finer, and write `harms_file` into `folder`.

    The statistics of `runtime/meter/learning.py` lie there; where errors are `fed` back, Gram matrices too. `tell` gets
    how many steps of how many are done. Raises LoadFailed, BadRequest (a text too short), BadValues, OSError.
    """
    grams = StoredGrams(folder / GRAMS_FILE, threads) if fed else None
    sensing = _Sensing(path, passage, window, threads, KnownInputs(Importance.read(folder / DONE), grams))
    so_far = _SensingNotes(folder / _NOTE, f"{passage.digest} {window}", "best" if fed else "importance")
    groups, total = sensing.groups, len(sensing.matrices) + len(sensing.groups)
    for number, tensor in enumerate(sensing.matrices):
        tell(number, total)
        so_far.errors(tensor.name, lambda tensor=tensor: sensing.errors(tensor))  # type: ignore[misc]
    for number, group in enumerate(groups, len(sensing.matrices)):
        tell(number, total)
        so_far.divergence(group[0].name, lambda group=group: sensing.divergence(group))  # type: ignore[misc]
    found = MeasuredHarms(dict(_harms(groups, so_far)))
    replace_file(folder / harms_file(fed=fed), found.data)
    tell(total, total)
    return found


def _harms(groups: Sequence[Sequence[Tensor]], so_far: _SensingNotes) -> Iterator[tuple[str, Errors]]:
    for group in groups:
        felt, whole = max(0.0, so_far.felt[group[0].name]), sum(so_far.probes[tensor.name] for tensor in group)
        for tensor in group if whole > 0 else ():
            yield tensor.name, {type: felt * error / whole for type, error in so_far.found[tensor.name].items()}


@dataclass(frozen=True)
class KnownInputs:
    """The statistics that the pass will have."""

    importance: Importance
    grams: StoredGrams | None

    def squares(self, tensor: Tensor, matrix: int) -> Floats | None:
        """The squares of the inputs of a matrix, or of one in a stack, float32 `(columns,)`."""
        found = self.importance.weights(tensor.name, tensor.columns, _matrices(tensor))
        return found if found is None or found.ndim == 1 else found[matrix]

    def inputs(self, tensor: Tensor, matrix: int) -> InputStatistics:
        """All that is known of them."""
        factor = self.grams.factor(tensor.name) if self.grams else None
        return InputStatistics(factor, self.squares(tensor, matrix))


class _SensingNotes:
    """Measurements, kept in a file for a process that goes on, and for the other effort.

    For one way of quantizing, `found` has the errors by name and type, and `probes` the probe's. For all ways, `felt`
    has the divergence of each group, by the name of its first matrix.
    """

    def __init__(self, path: Path, mark: str, way: str) -> None:
        self._path, self._mark, self._way = path, mark, way
        self._data: dict[str, Any] = {"mark": mark, "felt": {}}
        try:
            data = json.loads(path.read_bytes())
            if data["mark"] == mark:
                self._data = data
            self.felt: dict[str, float] = dict(self._data["felt"])
            self.found, self.probes = _errors_in(self._data.get(way) or {"found": {}, "probes": {}})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self._data, self.felt, self.found, self.probes = {"mark": mark}, {}, {}, {}

    def errors(self, name: str, measure: Callable[[], tuple[Errors, float]]) -> None:
        """Measure the errors of a matrix, unless they are known."""
        if name not in self.found:
            self.found[name], self.probes[name] = measure()
            self._save()

    def divergence(self, name: str, measure: Callable[[], float]) -> None:
        """Measure the divergence of a group, unless it is known."""
        if name not in self.felt:
            self.felt[name] = measure()
            self._save()

    def _save(self) -> None:
        found = {name: {type.name: e for type, e in each.items()} for name, each in self.found.items()}
        self._data |= {"felt": self.felt, self._way: {"found": found, "probes": self.probes}}
        replace_file(self._path, json.dumps(self._data).encode())


def _errors_in(data: Any) -> tuple[dict[str, Errors], dict[str, float]]:
    found = {name: {QuantType[type]: float(e) for type, e in each.items()} for name, each in data["found"].items()}
    return found, dict(data["probes"])


class _Sensing:
    """The measurements on one model: `matrices` that types are chosen for, in `groups` that are felt together."""

    def __init__(self, path: Path, passage: Passage, window: int, threads: int, known: KnownInputs) -> None:
        self._threads, self._known = threads, known
        self._patched = PatchedReader(path, window, threads)
        windows = self._patched.reader.windows(passage)
        found = self._patched.find(next(iter(windows.values())))
        quantized = {each.name for each in ModelPlan.of(self._patched.header).tensors if quantizable(each)}
        self.matrices = [each for each in self._patched.header.tensors if each.name in found & quantized]
        weights = sum(each.rows * each.columns for each in self.matrices)
        reads = int(min(_MOST, max(_LEAST, _WORK / max(1, weights))))
        self.groups = grouped(self.matrices, reads // _GROUP)
        most = min(_EACH, max(_GROUP, reads // max(1, len(self.groups))))
        chosen = self._patched.reader.windows(passage, most).values()
        self._kept: list[KeptWindow] = [record(tokens, self._patched.reader.logits(tokens)) for tokens in chosen]

    def errors(self, tensor: TensorInfo) -> tuple[Errors, float]:
        """The errors of a matrix by type, and the error of the probe, reckoned for all rows."""
        types, probe = candidates(tensor.columns), type_for_rows(PROBE, tensor.columns)
        found, coarse = dict.fromkeys(types, 0.0), 0.0
        for matrix, numbers in _sample(tensor):
            rows, inputs = self._values(tensor, numbers), self._known.inputs(tensor, matrix)
            share = tensor.rows / (len(numbers) * min(_EXPERTS, _matrices(tensor)))
            for type, error in errors_of(rows, types, inputs, self._threads).items():
                found[type] += share * error
            coarse += share * inputs.error(inputs.plainly(rows, probe, self._threads) - rows)
        return found, coarse

    def divergence(self, group: Sequence[TensorInfo]) -> float:
        """The mean divergence while the matrices of a group have the probe's type."""
        with self._patched.replaced(each for tensor in group for each in self._coarse(tensor)):
            found = [compare(window, self._patched.reader.logits(window.tokens)) for window in self._kept]
        return float(np.mean([window.divergence.mean() for window in found]))

    def _coarse(self, tensor: TensorInfo) -> Iterator[tuple[TensorInfo, int, Bytes]]:
        """All rows of a matrix as the probe makes them, in the file's own type, with the number of the first."""
        probe, each = type_for_rows(PROBE, tensor.columns), tensor.rows // _matrices(tensor)
        step = max(16, _VALUES // tensor.columns)
        for matrix in range(_matrices(tensor)):
            inputs = InputStatistics(squares=self._known.squares(tensor, matrix))
            for first in range(matrix * each, (matrix + 1) * each, step):
                rows = self._values(tensor, np.arange(first, min(first + step, (matrix + 1) * each)))
                made = inputs.plainly(rows, probe, self._threads)
                yield tensor, first, blocks.quantize(made, tensor.type, threads=self._threads)

    def _values(self, tensor: TensorInfo, numbers: NDArray[np.int64]) -> Floats:
        return blocks.dequantize(self._patched.stored(tensor)[numbers], tensor.type, tensor.columns)


def _matrices(tensor: Tensor) -> int:
    """How many matrices a tensor is a stack of."""
    return tensor.shape[2] if len(tensor.shape) > 2 else 1


def _sample(tensor: Tensor) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Numbers of rows that speak for all, evenly spread over some matrices, each with the matrix's number."""
    count, each = _matrices(tensor), tensor.rows // _matrices(tensor)
    for matrix in np.unique(np.linspace(0, count - 1, min(_EXPERTS, count)).astype(int)).tolist():
        rows = np.unique(np.linspace(0, each - 1, min(_ROWS, each)).astype(np.int64))
        yield matrix, matrix * each + rows


def grouped(matrices: Sequence[TensorInfo], most: int) -> list[list[TensorInfo]]:
    """At most `most` groups where that can be: each matrix alone, or neighbouring layers' matrices of one role."""
    if len(matrices) <= most:
        return [[matrix] for matrix in matrices]
    roles: dict[str, list[TensorInfo]] = {}
    for matrix in matrices:
        roles.setdefault(re.sub(r"^blk\.\d+\.", "", matrix.name), []).append(matrix)
    parts = max(1, (most - sum(len(role) == 1 for role in roles.values())) // len(roles))
    found = []
    for role in roles.values():
        ordered = sorted(role, key=lambda matrix: matrix.layer or 0)
        for part in range(min(parts, len(ordered))):
            count = min(parts, len(ordered))
            found.append(ordered[part * len(ordered) // count : (part + 1) * len(ordered) // count])
    return found
