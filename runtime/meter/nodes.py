"""Nodes of llama.cpp's graph for native callbacks: fields of `struct ggml_tensor` at their places in `ggml.h`.

Fields that llama.cpp has functions for are checked before the first use: `check_offsets`.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from quant.types import QuantType, Tensor
from runtime.errors import LoadFailed
from runtime.llama.library import library

# Offsets in `struct ggml_tensor` of the pinned version.
TYPE, NE, NB, OP, SRC, DATA, _NAME = 0, 16, 48, 80, 152, 248, 256
_STRUCT = 512
LONGEST = 64  # bytes of a name
_ZERO = ord("0")
LEAST_ROWS = 16  # of inputs that are looked at: fewer are a step of an answer, or the rest of a batch
F32 = QuantType.by_name("F32").id
ADDRESS = 0  # the field of a matrix's row in a table of matrices: the address of the weights once they were met


class InputsNotFinite(ValueError):
    """A model computes inputs of a matrix, whose name this is, that are not finite."""


@intrinsic
def pointer(typingctx: Any, address: Any) -> Any:
    """A pointer from a number."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), code


@njit(inline="always")
def word(address: Any) -> Any:
    """The int64 at an address."""
    return carray(pointer(address), (1,), np.int64)[0]


@njit(inline="always")
def integer(address: Any) -> Any:
    """The int32 at an address."""
    return carray(pointer(address), (1,), np.int32)[0]


def name_table(tensors: Sequence[Tensor]) -> NDArray[np.uint8]:
    """The names that `find` compares, one in each row, with zeros behind them: uint8[tensors, LONGEST]."""
    table = np.zeros((len(tensors), LONGEST), np.uint8)
    for row, tensor in zip(table, tensors, strict=True):
        name = tensor.name.encode()[: LONGEST - 1]
        row[: len(name)] = np.frombuffer(name, np.uint8)
    return table


@njit
def find(weights: Any, table: Any, names: Any, count: Any) -> Any:
    """The row of a matrix in a table of `count` matrices with these names, -1 where it is none of them."""
    for row in range(count):
        if table[row, ADDRESS] == weights:
            return row
    name = carray(pointer(weights + _NAME), (LONGEST,), np.uint8)
    for row in range(count):
        same = True
        for letter in range(LONGEST):
            if names[row, letter] != name[letter]:
                same = False
                break
            if name[letter] == 0:
                break
        if same:
            table[row, ADDRESS] = weights
            return row
    return -1


@njit
def number_behind(node: Any, prefix: Any) -> Any:
    """The number behind `prefix`, uint8, in a node's name, such as 12 in `l_out-12`; -1 for another name."""
    name = carray(pointer(node + _NAME), (LONGEST,), np.uint8)
    length = len(prefix)
    for letter in range(length):
        if name[letter] != prefix[letter]:
            return -1
    number, letter = 0, length
    while letter < LONGEST and _ZERO <= name[letter] <= _ZERO + 9:
        number = 10 * number + name[letter] - _ZERO
        letter += 1
    return number if letter > length and name[letter] == 0 else -1


def operations() -> tuple[int, int]:
    """The numbers of MUL_MAT and MUL_MAT_ID."""
    name = library()._lib.ggml_op_name
    name.restype, name.argtypes = ctypes.c_char_p, (ctypes.c_int,)
    names = [name(number) for number in range(96)]
    return names.index(b"MUL_MAT"), names.index(b"MUL_MAT_ID")


def check_offsets() -> None:
    """Ask llama.cpp about a tensor of our making whose fields are known. Raises LoadFailed."""
    lib = library()._lib
    made = ctypes.create_string_buffer(_STRUCT)
    multiply = operations()[0]
    struct.pack_into("<4q", made, NE, 3, 5, 7, 11)
    struct.pack_into("<i", made, OP, multiply)
    struct.pack_into("<q", made, DATA, 0x1234)
    struct.pack_into("4s", made, _NAME, b"name")
    found = []
    for function, result in (
        ("ggml_nelements", ctypes.c_int64),
        ("ggml_nrows", ctypes.c_int64),
        ("ggml_get_data", ctypes.c_void_p),
        ("ggml_get_name", ctypes.c_char_p),
        ("ggml_op_desc", ctypes.c_char_p),
    ):
        call = getattr(lib, function)
        call.restype, call.argtypes = result, (ctypes.c_void_p,)
        found.append(call(ctypes.addressof(made)))
    if found != [1155, 385, 0x1234, b"name", b"MUL_MAT"]:
        raise LoadFailed("the structures of llama.cpp have changed: `ggml_tensor`", "install the pinned version again")
