"""Two texts that are told apart by a vector added to every token, as BERT does: llama.cpp knows the first kind only.

It adds the first kind's vector to all. So a pair of texts is handed over as the vectors of its tokens, those of the
second text with the difference of both kinds added; the file's table of tokens is read where it lies.
"""

from __future__ import annotations

import ctypes
from array import array
from typing import Any

import numpy as np

from quant.gguf.header import Header, TensorInfo, read_file
from runtime.llama.library import library
from runtime.llama.model import Model


class _Traits(ctypes.Structure):
    """`ggml_type_traits` of ggml.h, as far as it is used."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("interleave", ctypes.c_int64),
        ("bytes", ctypes.c_size_t),
        ("quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
    )


class Kinds:
    """The vectors of a model's tokens."""

    def __init__(self, model: Model, header: Header, tokens: TensorInfo, kinds: TensorInfo) -> None:
        self._width = tokens.shape[0]
        self._table = self._map(model, header, tokens)
        self._decode = self._decoder(tokens)
        first, second = self._map(model, header, kinds)[:2]
        decode = self._decoder(kinds)
        self._difference = self._floats(second, decode) - self._floats(first, decode)

    @classmethod
    def of(cls, model: Model) -> Kinds | None:
        """Those of a model whose texts are of two kinds, None for any other."""
        header = read_file(model.path)
        tensors = {tensor.name: tensor for tensor in header.tensors}
        kinds = tensors.get("token_types.weight")
        if header.metadata["general.architecture"] != "bert" or kinds is None or kinds.shape[1] < 2:
            return None
        return cls(model, header, tensors["token_embd.weight"], kinds)

    def vectors(self, ids: array[int], second: int) -> np.ndarray:
        """float32[len(ids), width]: what stands for the tokens of a pair whose second text begins at `second`."""
        found = np.stack([self._floats(self._table[token], self._decode) for token in ids])
        found[second:] += self._difference
        return found

    @staticmethod
    def _map(model: Model, header: Header, tensor: TensorInfo) -> np.ndarray:
        rows = tensor.shape[1]
        start = header.data_offset + tensor.offset
        return np.memmap(model.path, np.uint8, "r", start, (rows, tensor.nbytes // rows))

    def _floats(self, row: np.ndarray, decode: Any) -> np.ndarray:
        if decode is None:
            return np.frombuffer(row.tobytes(), "<f4")
        out = np.empty(self._width, np.float32)
        decode(row.tobytes(), out.ctypes.data, self._width)
        return out

    @staticmethod
    def _decoder(tensor: TensorInfo) -> Any:
        traits = library()._lib.ggml_get_type_traits
        traits.restype = ctypes.POINTER(_Traits)
        address = traits(tensor.type.id).contents.to_float
        kind = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64)
        return kind(address) if address else None
