"""Weights of a loaded model that are replaced in memory for a while, to see what the output feels of it.

A callback without Python notes where llama.cpp has the weights while it reads a window. Nothing is written where the
bytes in memory are not the file's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numba import carray, cfunc
from numpy.typing import NDArray

from quant.gguf.header import Header, TensorInfo, read_file
from quant.types import Tensor
from runtime.errors import LoadFailed
from runtime.llama.library import library
from runtime.meter.nodes import ADDRESS, DATA, LONGEST, SRC, check_offsets, find, name_table, pointer, word
from runtime.meter.windows import Tokens, WindowReader

Bytes = NDArray[np.uint8]
# Fields of the state: how many tensors are looked for, and whether they still are.
_TENSORS, _LOOKING, _STATE = 0, 1, 2
# Bytes at the beginning of a tensor that are compared with the file's.
_COMPARED = 4096


@cfunc("boolean(intp, boolean, intp)", nopython=True)
def _meet(tensor: Any, ask: Any, place: Any) -> Any:
    """llama.cpp's callback: note the address of the weights that a node reads. `place` has three addresses."""
    places = carray(pointer(place), (3,), np.int64)
    state = carray(pointer(places[0]), (_STATE,), np.int64)
    weights = word(tensor + SRC)
    if state[_LOOKING] == 0 or weights == 0:
        return False
    count = state[_TENSORS]
    table = carray(pointer(places[1]), (count, 1), np.int64)
    find(weights, table, carray(pointer(places[2]), (count, LONGEST), np.uint8), count)
    return False


class _WeightFinder:
    """The callback with its memory."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        check_offsets()
        self.table = np.zeros((len(tensors), 1), np.int64)
        self.names, self.state = name_table(tensors), np.array([len(tensors), 1], np.int64)
        arrays = (self.state, self.table, self.names)
        self._places = np.array([each.ctypes.data for each in arrays], np.int64)
        self.callback = ctypes.cast(_meet.address, library().ggml_backend_sched_eval_callback)

    @property
    def data(self) -> int:
        """The callback's last argument."""
        return int(self._places.ctypes.data)


class PatchedReader:
    """A model that reads windows, some of its weights replaced for a while."""

    def __init__(self, path: Path, window: int, threads: int) -> None:
        """Load the file at `path`. Raises as `WindowReader`."""
        self.header: Header = read_file(path)
        self._file = np.memmap(path, np.uint8, "r")
        self._tensors = [tensor for tensor in self.header.tensors if len(tensor.shape) > 1]
        self._finder = _WeightFinder(self._tensors)
        self.reader = WindowReader(path, window, threads, self._finder, writable=True)
        self._places: dict[str, Bytes] = {}

    def find(self, tokens: Tokens) -> frozenset[str]:
        """Read a window; the names of the tensors that it reads, and whose weights can be replaced. LoadFailed."""
        self.reader.read(tokens)
        self._finder.state[_LOOKING] = 0
        for tensor, address in zip(self._tensors, self._finder.table[:, ADDRESS].tolist(), strict=True):
            at = ctypes.c_int64.from_address(address + DATA).value if address else 0
            if at:
                place = np.ctypeslib.as_array((ctypes.c_uint8 * tensor.nbytes).from_address(at))
                if np.array_equal(place[:_COMPARED], self.stored(tensor).reshape(-1)[:_COMPARED]):
                    self._places[tensor.name] = place
        return frozenset(self._places)

    def stored(self, tensor: TensorInfo) -> Bytes:
        """The bytes of a tensor in the file, uint8[rows, row_bytes]."""
        begin = self.header.data_offset + tensor.offset
        return self._file[begin : begin + tensor.nbytes].reshape(tensor.rows, -1)

    @contextmanager
    def replaced(self, made: Iterator[tuple[TensorInfo, int, Bytes]]) -> Iterator[None]:
        """Put rows into the place of a tensor's from a number on, uint8[rows, row_bytes]; undone at the end.

        Raises LoadFailed for a tensor that `find` does not name.
        """
        changed: dict[str, TensorInfo] = {}
        try:
            for tensor, first, rows in made:
                if tensor.name not in self._places:
                    raise LoadFailed(f"the weights of `{tensor.name}` cannot be replaced in memory", "report it")
                changed[tensor.name] = tensor
                place = self._places[tensor.name].reshape(tensor.rows, -1)
                place[first : first + len(rows)] = rows
            yield
        finally:
            for name, tensor in changed.items():
                self._places[name][:] = self.stored(tensor).reshape(-1)
