"""Sums of the squares of each matrix's inputs, collected inside llama.cpp while it reads: no Python runs for a node.

The callback is compiled by Numba, so it needs no interpreter lock. llama.cpp calls it for each node of its graph; it
reads the fields of `struct ggml_tensor` at their places in `ggml.h`. Fields that llama.cpp has functions for are
checked before the first use. The rules come from `tools/imatrix/imatrix.cpp`: matrices of the layers, at least 16 rows
of float32 at once, experts counted by the tokens that are routed to them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numba import carray, cfunc, njit
from numpy.typing import NDArray

from quant.importance import Importance, InputSquares
from quant.types import Tensor
from runtime.errors import LoadFailed
from runtime.llama.library import library
from runtime.meter.nodes import (
    DATA,
    F32,
    LEAST_ROWS,
    LONGEST,
    NB,
    NE,
    OP,
    SRC,
    TYPE,
    InputsNotFinite,
    check_offsets,
    find,
    integer,
    name_table,
    operations,
    pointer,
    word,
)

# Fields of a row of the table behind the address: the first sum, columns, matrices, and the row of the matrix with the
# same inputs, -1 for none.
_FIRST, _COLUMNS, _MATRICES, _TWIN, _FIELDS = 1, 2, 3, 4, 5
# Fields of the state: matrices, the numbers of two operations, whether something did not fit, the row that was met last
# with its inputs and its experts, and the row behind which nothing is computed.
_TENSORS, _MUL_MAT, _MUL_MAT_ID, _FAULT, _LATEST, _INPUTS, _ROUTES, _END, _STATE = 0, 1, 2, 3, 4, 5, 6, 7, 8
_EXPERTS = 4096


@njit
def _add(data: Any, step: Any, rows: Any, columns: Any, sums: Any) -> None:
    """Add the squares of `rows` rows, `step` bytes apart, four at once."""
    row = 0
    while row + 4 <= rows:
        first, second = (
            carray(pointer(data), (columns,), np.float32),
            carray(pointer(data + step), (columns,), np.float32),
        )
        third, fourth = (
            carray(pointer(data + 2 * step), (columns,), np.float32),
            carray(pointer(data + 3 * step), (columns,), np.float32),
        )
        for column in range(columns):
            near = first[column] * first[column] + second[column] * second[column]
            far = third[column] * third[column] + fourth[column] * fourth[column]
            sums[column] += near + far
        data += 4 * step
        row += 4
    while row < rows:
        values = carray(pointer(data), (columns,), np.float32)
        for column in range(columns):
            sums[column] += values[column] * values[column]
        data += step
        row += 1


@njit
def _wants(tensor: Any, row: Any, table: Any, state: Any) -> Any:
    """Whether the inputs of a matrix are to be added; not where they were just added for another one."""
    inputs, routed = word(tensor + SRC + 8), integer(tensor + OP) == state[_MUL_MAT_ID]
    if integer(inputs + TYPE) != F32 or (not routed and word(inputs + NE + 8) < LEAST_ROWS):
        return False
    routes = word(tensor + SRC + 16) if routed else 0
    latest = state[_LATEST]
    if latest >= 0 and inputs == state[_INPUTS] and routes == state[_ROUTES]:
        alike = table[row, _MATRICES] == table[latest, _MATRICES] and table[row, _COLUMNS] == table[latest, _COLUMNS]
        if alike and table[row, _TWIN] in (-1, latest):
            table[row, _TWIN] = latest
            return False
    if table[row, _TWIN] >= 0:
        state[_FAULT] = 1
    state[_LATEST], state[_INPUTS], state[_ROUTES] = row, inputs, routes
    return True


@njit
def _add_dense(weights: Any, inputs: Any, columns: Any, sums: Any, counts: Any) -> None:
    across, deep, rows = word(weights + NE + 16), word(weights + NE + 24), word(inputs + NE + 8)
    for i3 in range(word(inputs + NE + 24)):
        for i2 in range(word(inputs + NE + 16)):
            matrix = (i3 % deep) * across + i2 % across
            at = word(inputs + DATA) + i2 * word(inputs + NB + 16) + i3 * word(inputs + NB + 24)
            _add(at, word(inputs + NB + 8), rows, columns, sums[matrix * columns : (matrix + 1) * columns])
            counts[matrix] += rows


@njit
def _add_routed(routes: Any, inputs: Any, columns: Any, sums: Any, counts: Any) -> Any:
    """Add the inputs of experts to theirs; returns whether all of them exist."""
    data, ids, used = word(inputs + DATA), word(routes + DATA), word(inputs + NE + 8)
    for slot in range(word(routes + NE)):
        for token in range(word(inputs + NE + 16)):
            expert = integer(ids + token * word(routes + NB + 8) + slot * word(routes + NB))
            if expert < 0 or expert * columns >= len(sums):
                return False
            at = data + (slot % used) * word(inputs + NB + 8) + token * word(inputs + NB + 16)
            _add(at, 0, 1, columns, sums[expert * columns : (expert + 1) * columns])
            counts[expert] += 1
    return True


@cfunc("boolean(intp, boolean, intp)", nopython=True)
def _collect(tensor: Any, ask: Any, place: Any) -> Any:
    """llama.cpp's callback: say whether a node is wanted, then add its inputs. `place` has five addresses.

    The answer after a node that was wanted says whether llama.cpp goes on.
    """
    places = carray(pointer(place), (5,), np.int64)
    state = carray(pointer(places[0]), (_STATE,), np.int64)
    count, operation = state[_TENSORS], integer(tensor + OP)
    if operation not in (state[_MUL_MAT], state[_MUL_MAT_ID]):
        return False
    weights, inputs = word(tensor + SRC), word(tensor + SRC + 8)
    table = carray(pointer(places[1]), (count, _FIELDS), np.int64)
    row = find(weights, table, carray(pointer(places[2]), (count, LONGEST), np.uint8), count)
    if row < 0:
        return False
    if ask:
        return _wants(tensor, row, table, state)
    columns, matrices = table[row, _COLUMNS], table[row, _MATRICES]
    if word(inputs + NE) != columns:
        state[_FAULT] = 1
        return False
    sums = carray(pointer(places[3] + 4 * table[row, _FIRST]), (matrices * columns,), np.float32)
    counts = carray(pointer(places[4] + 8 * row * _EXPERTS), (_EXPERTS,), np.int64)
    if operation == state[_MUL_MAT]:
        _add_dense(weights, inputs, columns, sums, counts)
    elif not _add_routed(word(tensor + SRC + 16), inputs, columns, sums, counts):
        state[_FAULT] = 1
        return False
    return row != state[_END]


class Sums(NamedTuple):
    """The sums of a collector after `windows` windows: squares float64, counts int64, which matrices share inputs."""

    windows: int
    totals: NDArray[np.float64]
    counts: NDArray[np.int64]
    twins: NDArray[np.int64]


class SquareCollector:
    """Squares of the inputs of all matrices in a model's layers; `callback` is for `ContextParams.watch`.

    It has to be kept as long as the context. `settle` is called between windows, so that float32 sums stay short.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        """Raises LoadFailed where llama.cpp's structures differ from the pinned version's."""
        self._matrices = [each for each in tensors if _counts(each)]
        check_offsets()
        rows, first = [], 0
        for each in self._matrices:
            columns, matrices = each.shape[0], each.shape[2] if len(each.shape) > 2 else 1
            rows.append((0, first, columns, matrices, -1))
            first += columns * matrices
        self._table = np.array(rows, np.int64).reshape(-1, _FIELDS)
        self._names = name_table(self._matrices)
        self._sums, self._totals = np.zeros(first, np.float32), np.zeros(first, np.float64)
        self._counts = np.zeros((len(rows), _EXPERTS), np.int64)
        self._state = np.array([len(rows), *operations(), 0, -1, 0, 0, -1], np.int64)
        arrays = (self._state, self._table, self._names, self._sums, self._counts)
        self._places = np.array([each.ctypes.data for each in arrays], np.int64)
        self.callback = ctypes.cast(_collect.address, library().ggml_backend_sched_eval_callback)

    @property
    def data(self) -> int:
        """The callback's last argument, for `ContextParams.watch_data`."""
        return int(self._places.ctypes.data)

    def settle(self) -> None:
        """Add what came since the last call to the totals.

        Raises LoadFailed where inputs did not fit their matrix, InputsNotFinite.
        """
        if self._state[_FAULT]:
            raise LoadFailed("llama.cpp multiplies a matrix by inputs of another width than its own", "report it")
        if not np.isfinite(self._sums).all():
            bad = int(np.flatnonzero(~np.isfinite(self._sums))[0])
            row = int(np.searchsorted(self._table[:, _FIRST], bad, "right")) - 1
            raise InputsNotFinite(self._matrices[row].name)
        self._totals += self._sums
        self._sums[:] = 0
        # Windows are alike: behind the matrix that came last, only the head is left, whose logits nobody asks for.
        if self._state[_LATEST] >= 0:
            self._state[_END], self._state[_LATEST], self._state[_INPUTS] = self._state[_LATEST], -1, 0

    def sums(self, windows: int) -> Sums:
        """The sums of N windows, for `restore`."""
        return Sums(windows, self._totals, self._counts, self._table[:, _TWIN])

    def restore(self, sums: Sums) -> bool:
        """Go on with the sums of another collector of the same matrices; whether they fit."""
        own = (self._totals, self._counts, self._table[:, _TWIN])
        if any(mine.shape != theirs.shape for mine, theirs in zip(own, sums[1:], strict=True)):
            return False
        for mine, theirs in zip(own, sums[1:], strict=True):
            mine[...] = theirs
        return True

    def importance(self, dataset: str, chunks: int, chunk: int) -> Importance:
        """All that was collected; matrices that no input came to are left out."""
        self.settle()
        found = {}
        for row, each in enumerate(self._matrices):
            twin = int(self._table[row, _TWIN])
            own = row if twin < 0 else twin
            _, first, columns, matrices, _ = self._table[own].tolist()
            sums, counts = self._totals[first : first + columns * matrices], self._counts[own, :matrices]
            if counts.any():
                found[each.name] = InputSquares(sums.reshape(matrices, columns).copy(), counts.astype(np.float64))
        return Importance(found, (dataset,), chunks, chunk)


def _counts(tensor: Tensor) -> bool:
    """Whether llama.cpp counts the inputs of a tensor: a matrix, or a stack of few enough matrices, of a layer."""
    shape = tensor.shape
    return tensor.name.startswith("blk.") and 2 <= len(shape) <= 3 and (len(shape) < 3 or shape[2] <= _EXPERTS)
