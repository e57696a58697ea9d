"""Layers left out while llama.cpp computes, without another file: a skipped layer's output becomes its own input.

llama.cpp names the output of layer N `l_out-N`, which is the input of the next one. A callback without Python copies
each as it comes, measures how much a layer changed, and writes the copy over the output of a layer that is skipped.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

import numpy as np
from numba import carray, cfunc, njit
from numpy.typing import NDArray

from runtime.errors import LoadFailed
from runtime.llama.library import library
from runtime.meter.nodes import DATA, F32, NB, NE, TYPE, check_offsets, integer, number_behind, pointer, word

_OUTPUT = np.frombuffer(b"l_out-", np.uint8)
# Fields of the state: layers, values that the copy has room for, rows that it holds, whether something did not fit, and
# how many layers were skipped.
_LAYERS, _ROOM, _ROWS, _FAULT, _SKIPPED, _STATE = 0, 1, 2, 3, 4, 5


@njit
def _pass(node: Any, layer: Any, state: Any, copy: Any, changes: Any) -> None:
    """Copy the rows of a layer's output, and add up how much they differ from its input by 1 − cosine."""
    width, rows = word(node + NE), word(node + NE + 8)
    known = layer > 0 and state[_ROWS] == rows
    for row in range(rows):
        values = carray(pointer(word(node + DATA) + row * word(node + NB + 8)), (width,), np.float32)
        before = copy[row * width : (row + 1) * width]
        if known:
            product, one, other = 0.0, 0.0, 0.0
            for column in range(width):
                product += np.float64(values[column]) * before[column]
                one += np.float64(values[column]) * values[column]
                other += np.float64(before[column]) * before[column]
            changes[layer] += 1 - product / np.sqrt(max(one * other, 1e-30))
        before[:] = values
    state[_ROWS] = rows


@njit
def _skip(node: Any, state: Any, copy: Any) -> None:
    """Write the copied input over a layer's output."""
    width, rows = word(node + NE), word(node + NE + 8)
    if state[_ROWS] != rows:
        state[_FAULT] = 1
        return
    for row in range(rows):
        values = carray(pointer(word(node + DATA) + row * word(node + NB + 8)), (width,), np.float32)
        values[:] = copy[row * width : (row + 1) * width]
    state[_SKIPPED] += 1


@cfunc("boolean(intp, boolean, intp)", nopython=True)
def _watch(node: Any, ask: Any, place: Any) -> Any:
    """llama.cpp's callback: say whether a node is wanted, then pass or skip it. `place` has four addresses."""
    layer = number_behind(node, _OUTPUT)
    if layer < 0:
        return False
    if ask:
        return True
    places = carray(pointer(place), (4,), np.int64)
    state = carray(pointer(places[0]), (_STATE,), np.int64)
    size = word(node + NE) * word(node + NE + 8)
    if layer >= state[_LAYERS] or size > state[_ROOM] or integer(node + TYPE) != F32:
        state[_FAULT] = 1
        return True
    copy = carray(pointer(places[1]), (state[_ROOM],), np.float32)
    if carray(pointer(places[2]), (state[_LAYERS],), np.int64)[layer]:
        _skip(node, state, copy)
    else:
        _pass(node, layer, state, copy, carray(pointer(places[3]), (state[_LAYERS],), np.float64))
    return True


class LayerWatcher:
    """The callback with its memory; `callback` and `data` are for `ContextParams`. Kept as long as the context."""

    def __init__(self, layers: int, width: int, window: int) -> None:
        """For a model of N layers and `width` values of a token, and windows of `window` tokens. Raises LoadFailed."""
        check_offsets()
        self._state = np.array([layers, width * window, 0, 0, 0], np.int64)
        self._copy = np.zeros(width * window, np.float32)
        self._skipped, self._changes = np.zeros(layers, np.int64), np.zeros(layers)
        arrays = (self._state, self._copy, self._skipped, self._changes)
        self._places = np.array([each.ctypes.data for each in arrays], np.int64)
        self.callback = ctypes.cast(_watch.address, library().ggml_backend_sched_eval_callback)

    @property
    def data(self) -> int:
        """The callback's last argument."""
        return int(self._places.ctypes.data)

    def skip(self, layers: Iterable[int]) -> None:
        """Skip these layers from now on, which layer 0 cannot be one of; changes are summed up anew."""
        self._skipped[:] = 0
        self._skipped[list(layers)] = 1
        self._changes[:] = 0
        self._state[_SKIPPED] = 0

    def check(self, windows: int) -> None:
        """Raise LoadFailed unless every layer to skip was skipped in N windows."""
        if self._state[_FAULT] or self._state[_SKIPPED] != windows * self._skipped.sum():
            raise LoadFailed("llama.cpp does not show the outputs of this model's layers", "report it")

    @property
    def changes(self) -> NDArray[np.float64]:
        """float64[layers]: how much each layer changed its tokens since `skip`, Σ(1 − cosine)."""
        return self._changes.copy()
