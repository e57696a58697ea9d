"""Types and tensors: the number, block and bytes of each GGML type, and a tensor as a GGUF file lists it.

Source of numbers and block sizes: `enum ggml_type` in `ggml.h` and the `block_*` structures in `ggml-common.h` of
llama.cpp. Types that llama.cpp removed (Q4_2, Q4_0_4_4, …) are absent on purpose: no engine reads them any more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import cache
from math import prod

from quant.errors import UnknownLevel, WrongShape

# Types of bitnet.cpp, a copy of llama.cpp that has gone its own way.
_OF_BITNET = {36: "I2_S", 37: "I8_S", 38: "TL1"}
# GGUF's names: `blk.12.ffn_down_exps.weight` is the down projection of the experts in layer 12.
_LAYER = re.compile(r"blk\.(\d+)\.")
_ROLE = re.compile(r"(?:blk\.\d+\.)?(\w+?)(?:_exps|_shexp)?\.weight")


class QuantType(Enum):
    """A GGML type. A row is cut into blocks of `block` elements, each stored in `block_bytes` bytes."""

    F32 = 0, 1, 4
    F16 = 1, 1, 2
    Q4_0 = 2, 32, 18
    Q4_1 = 3, 32, 20
    Q5_0 = 6, 32, 22
    Q5_1 = 7, 32, 24
    Q8_0 = 8, 32, 34
    Q8_1 = 9, 32, 36
    Q2_K = 10, 256, 84
    Q3_K = 11, 256, 110
    Q4_K = 12, 256, 144
    Q5_K = 13, 256, 176
    Q6_K = 14, 256, 210
    Q8_K = 15, 256, 292
    IQ2_XXS = 16, 256, 66
    IQ2_XS = 17, 256, 74
    IQ3_XXS = 18, 256, 98
    IQ1_S = 19, 256, 50
    IQ4_NL = 20, 32, 18
    IQ3_S = 21, 256, 110
    IQ2_S = 22, 256, 82
    IQ4_XS = 23, 256, 136
    I8 = 24, 1, 1
    I16 = 25, 1, 2
    I32 = 26, 1, 4
    I64 = 27, 1, 8
    F64 = 28, 1, 8
    IQ1_M = 29, 256, 56
    BF16 = 30, 1, 2
    TQ1_0 = 34, 256, 54
    TQ2_0 = 35, 256, 66
    MXFP4 = 39, 32, 17
    NVFP4 = 40, 64, 36
    Q1_0 = 41, 128, 18
    Q2_0 = 42, 64, 18

    def __init__(self, number: int, block: int, block_bytes: int) -> None:
        self.id = number
        self.block = block
        self.block_bytes = block_bytes

    @property
    def bits_per_weight(self) -> float:
        """Bits per element, scales included."""
        return self.block_bytes * 8 / self.block

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of `columns` elements; WrongShape when a row is not made of whole blocks."""
        if columns <= 0 or columns % self.block:
            raise WrongShape(f"a row of {columns} values is no multiple of the {self.block} in a {self.name} block")
        return columns // self.block * self.block_bytes

    @staticmethod
    def by_id(number: int) -> QuantType:
        """The type with this GGML number; UnknownLevel when there is none."""
        try:
            return _by_id()[number]
        except KeyError:
            own = f", which bitnet.cpp alone calls {_OF_BITNET[number]}" if number in _OF_BITNET else ""
            raise UnknownLevel(f"there is no GGML type number {number}{own}", hint=_known()) from None

    @staticmethod
    def by_name(name: str) -> QuantType:
        """The type with this name, in any case; UnknownLevel when there is none."""
        try:
            return QuantType[name.upper()]
        except KeyError:
            raise UnknownLevel(f"there is no type `{name}`", hint=_known()) from None


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a GGUF file. `shape` is in GGUF's order, columns first: (4096, 32000) has 32,000 rows of 4,096."""

    name: str
    shape: tuple[int, ...]
    type: QuantType

    @property
    def columns(self) -> int:
        """Elements of a row."""
        return self.shape[0]

    @property
    def rows(self) -> int:
        """Number of rows, over all matrices of a stack."""
        return prod(self.shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of all rows, without padding; WrongShape when a row is not made of whole blocks."""
        return self.type.row_bytes(self.columns) * self.rows

    @property
    def layer(self) -> int | None:
        """The number of its layer; None outside the layers. See `layer_of`."""
        return layer_of(self.name)

    @property
    def role(self) -> str:
        """Its role in the layer, such as `ffn_down`; see `role_of`."""
        return role_of(self.name)


def layer_of(name: str) -> int | None:
    """The number of the layer in a tensor's name: 12 for `blk.12.attn_v.weight`, None for `output.weight`."""
    found = _LAYER.match(name)
    return int(found[1]) if found else None


def role_of(name: str) -> str:
    """The role in a tensor's name: `ffn_down` for `blk.12.ffn_down.weight` and for its experts `…ffn_down_exps.weight`.

    "" for names that do not end in `.weight`, such as biases.
    """
    found = _ROLE.fullmatch(name)
    return found[1] if found else ""


@cache
def _by_id() -> dict[int, QuantType]:
    return {type.id: type for type in QuantType}


def _known() -> str:
    return "the types are " + ", ".join(type.name for type in QuantType)
