"""Gram matrices of matrices' inputs, E[x·xᵀ], collected through llama.cpp a few layers at a time, within a budget.

A callback without Python copies the inputs of the wanted matrices while llama.cpp reads a window; their products are
summed between windows. Matrices with the same inputs share one,
such as the matrices of queries, keys and values.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numba import carray, cfunc, njit
from numpy.typing import NDArray

from quant.errors import BadValues
from quant.feedback.factor import GramFactor
from quant.gguf.header import read_file
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
    check_offsets,
    find,
    integer,
    name_table,
    operations,
    pointer,
    word,
)
from runtime.meter.passages import Passage
from runtime.meter.windows import WindowReader

# Fields of a matrix's row of the table. `find` knows the first: the address of the weights once they were met.
_ADDRESS, _FIRST, _COLUMNS, _ROWS, _OWNER, _WANTED, _FIELDS = 0, 1, 2, 3, 4, 5, 6
# Fields of the state: matrices, the number of MUL_MAT, whether something did not fit, whether only owners are looked
# for. Then the row and the inputs that were met last, the row behind which nothing is wanted, rows of a window.
_TENSORS, _MUL_MAT, _FAULT, _LOOKING, _LATEST, _INPUTS, _END, _WINDOW, _STATE = 0, 1, 2, 3, 4, 5, 6, 7, 8


@njit
def _looks(inputs: Any, row: Any, table: Any, state: Any) -> None:
    """Note which matrix had these inputs first."""
    if state[_LATEST] >= 0 and inputs == state[_INPUTS] and table[row, _COLUMNS] == table[state[_LATEST], _COLUMNS]:
        table[row, _OWNER] = state[_LATEST]
        return
    table[row, _OWNER] = row
    state[_LATEST], state[_INPUTS] = row, inputs


@cfunc("boolean(intp, boolean, intp)", nopython=True)
def _copy(tensor: Any, ask: Any, place: Any) -> Any:
    """llama.cpp's callback: say whether a node is wanted, then copy its inputs. `place` has four addresses."""
    places = carray(pointer(place), (4,), np.int64)
    state = carray(pointer(places[0]), (_STATE,), np.int64)
    if integer(tensor + OP) != state[_MUL_MAT]:
        return False
    count, inputs = state[_TENSORS], word(tensor + SRC + 8)
    table = carray(pointer(places[1]), (count, _FIELDS), np.int64)
    row = find(word(tensor + SRC), table, carray(pointer(places[2]), (count, LONGEST), np.uint8), count)
    if row < 0:
        return False
    rows, columns = word(inputs + NE + 8), table[row, _COLUMNS]
    if ask:
        whole = word(inputs + NE + 16) * word(inputs + NE + 24) == 1
        if integer(inputs + TYPE) != F32 or rows < LEAST_ROWS or not whole or word(inputs + NE) != columns:
            return False
        if state[_LOOKING] != 0:
            _looks(inputs, row, table, state)
            return False
        return table[row, _WANTED] != 0
    if table[row, _ROWS] + rows > state[_WINDOW]:
        state[_FAULT] = 1
        return False
    target = carray(pointer(places[3]), (table[row, _FIRST] + state[_WINDOW] * columns,), np.float32)
    at = table[row, _FIRST] + table[row, _ROWS] * columns
    for line in range(rows):
        target[at : at + columns] = carray(
            pointer(word(inputs + DATA) + line * word(inputs + NB + 8)), (columns,), np.float32
        )
        at += columns
    table[row, _ROWS] += rows
    return row != state[_END]


class _InputWatcher:
    """The callback with its memory: `look` finds which matrices share inputs, then `want` says whose are copied."""

    def __init__(self, tensors: Sequence[Tensor], window: int) -> None:
        check_offsets()
        self.table = np.zeros((len(tensors), _FIELDS), np.int64)
        self.table[:, _COLUMNS], self.table[:, _OWNER] = [tensor.shape[0] for tensor in tensors], -1
        self.names = name_table(tensors)
        self.state = np.array([len(tensors), operations()[0], 0, 1, -1, 0, -1, window], np.int64)
        self.window, self.copied = window, np.empty(0, np.float32)
        self.places = np.zeros(4, np.int64)
        self._point()
        self.callback = ctypes.cast(_copy.address, library().ggml_backend_sched_eval_callback)

    @property
    def data(self) -> int:
        """The callback's last argument."""
        return int(self.places.ctypes.data)

    def _point(self) -> None:
        self.places[:] = [each.ctypes.data for each in (self.state, self.table, self.names, self.copied)]

    def want(self, rows: Iterable[int]) -> None:
        """Copy the inputs of these rows of the table from now on; the last of them ends the work of a window."""
        chosen = sorted(rows)
        self.table[:, _WANTED] = 0
        self.table[chosen, _WANTED] = 1
        sizes = self.table[chosen, _COLUMNS] * self.window
        self.table[chosen, _FIRST] = np.cumsum(sizes) - sizes
        self.copied = np.empty(int(sizes.sum()), np.float32)
        self.state[_LOOKING], self.state[_END] = 0, -1
        self._point()

    def taken(self, row: int) -> NDArray[np.float32]:
        """The inputs of a matrix that were copied since the last call, float32[tokens, columns]."""
        columns, rows, first = (int(self.table[row, field]) for field in (_COLUMNS, _ROWS, _FIRST))
        if self.state[_FAULT]:
            raise LoadFailed("llama.cpp multiplies a matrix by more inputs than a window has tokens", "report it")
        self.table[row, _ROWS] = 0
        return self.copied[first : first + rows * columns].reshape(rows, columns)


class InputGrams:
    """Gram matrices of the inputs of a model's matrices, collected when they are asked for: `quant`'s `Feedback`.

    Matrices are asked for in the order of `names`, in which the pass writes them. The next ones are collected
    together as far as `budget` allows.
    """

    def __init__(
        self, path: Path, passage: Passage, names: Sequence[str], window: int, most: int, threads: int, budget: int
    ) -> None:
        """Load the model at `path`, to read at most `most` windows of a text with it.

        budget: the bytes of Gram matrices that are collected at a time; one matrix is collected whatever it takes.
        Raises LoadFailed, BadRequest where the text is too short.
        """
        tensors = {tensor.name: tensor for tensor in read_file(path).tensors}
        self._names = [name for name in names if name in tensors and _fits(tensors[name])]
        self._rows = {name: row for row, name in enumerate(self._names)}
        self._watcher = _InputWatcher([tensors[name] for name in self._names], window)
        self._reader = WindowReader(path, window, threads, self._watcher)
        self._windows = list(self._reader.windows(passage, most).values())
        self._mark = hashlib.sha256(f"{passage.digest} {window} {len(self._windows)}".encode()).hexdigest()[:32]
        self._budget, self._threads = budget, threads
        self._lock = threading.Lock()
        self._grams: dict[int, NDArray[np.float32]] = {}
        self._factors: dict[int, GramFactor] = {}
        self._owners: NDArray[np.int64] | None = None
        self.passes = 0

    @property
    def entries(self) -> dict[str, str]:
        """The entry that tells files by the text and the windows that their errors were weighed on."""
        return {"lm.feedback": self._mark}

    def columns(self, name: str) -> int:
        """Columns of a matrix, one of `names`."""
        return int(self._watcher.table[self._rows[name], _COLUMNS])

    @property
    def mark(self) -> str:
        """The same for the same text, read in the same windows."""
        return self._mark

    def owners(self) -> dict[str, str]:
        """Each matrix whose inputs are seen, and the first one that has the same inputs, in the order of `names`."""
        with self._lock:
            found = {name: self._owner(name, collect=False) for name in self._names}
        return {name: self._names[owner] for name, owner in found.items() if owner >= 0}

    def gram(self, name: str) -> NDArray[np.float32] | None:
        """Σ x·xᵀ over the tokens for the inputs of a matrix; None for a tensor whose inputs are not seen."""
        with self._lock:
            owner = self._owner(name)
            return None if owner < 0 else self._grams[owner]

    def factor(self, name: str) -> GramFactor | None:
        """The factor for a matrix, from any thread; None for a tensor whose inputs are not seen.

        Raises BadValues where inputs are not finite, or no input came; LoadFailed.
        """
        with self._lock:
            owner = self._owner(name)
            if owner < 0:
                return None
            if owner not in self._factors:
                try:
                    self._factors[owner] = GramFactor(self._grams[owner], threads=self._threads)
                except BadValues as error:
                    raise BadValues(f"the inputs of `{name}`: {error}", "read another text with the model") from None
            return self._factors[owner]

    def _owner(self, name: str, *, collect: bool = True) -> int:
        """The row of the matrix that had the same inputs first, its Gram matrix collected; -1 for none."""
        row = self._rows.get(name)
        if row is None:
            return -1
        if self._owners is None:
            self._reader.collect(self._windows[0])
            self._owners = self._watcher.table[:, _OWNER].copy()
        owner = int(self._owners[row])
        if collect and owner >= 0 and owner not in self._grams:
            self._collect(row)
        return owner

    def _collect(self, first: int) -> None:
        """Collect for the matrix of row `first` and those behind it that fit the budget."""
        assert self._owners is not None
        chosen: list[int] = []
        left = self._budget
        for owner in self._owners[first:].tolist():
            size = 4 * int(self._watcher.table[owner, _COLUMNS]) ** 2
            if owner < 0 or owner in chosen:
                continue
            if chosen and size > left:
                break
            chosen.append(owner)
            left -= size
        self._factors.clear()
        self._grams = {row: np.zeros((self._watcher.table[row, _COLUMNS],) * 2, np.float32) for row in chosen}
        self._watcher.want(chosen)
        for tokens in self._windows:
            self._reader.collect(tokens)
            for row in chosen:
                inputs = self._watcher.taken(row)
                self._grams[row] += inputs.T @ inputs
        self.passes += 1


def _fits(tensor: Tensor) -> bool:
    """Whether a tensor is a matrix of a layer whose rows are blocks of 32."""
    return tensor.name.startswith("blk.") and len(tensor.shape) == 2 and tensor.shape[0] % 32 == 0
