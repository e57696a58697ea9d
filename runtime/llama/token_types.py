"""BERT's token types: a vector for each of the two texts of a pair, added to the embeddings of all its tokens.

llama.cpp adds the first type's vector to every token. So it gets a pair as embeddings instead of token ids, and the
second text's embeddings contain the difference of the two types. The embedding table is read from the model's file.
"""

from __future__ import annotations

import ctypes
from array import array
from typing import Any

import numpy as np

from quant.gguf.header import Header, TensorInfo, read_file
from runtime.llama.library import library
from runtime.llama.model import LlamaModel


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


class TokenTypes:
    """The embeddings of a model's tokens, for pairs of texts."""

    def __init__(self, model: LlamaModel, header: Header, tokens: TensorInfo, types: TensorInfo) -> None:
        self._width = tokens.shape[0]
        self._table = self._map(model, header, tokens)
        self._decode = self._decoder(tokens)
        first, second = self._map(model, header, types)[:2]
        decode = self._decoder(types)
        self._difference = self._floats(second, decode) - self._floats(first, decode)

    @classmethod
    def of(cls, model: LlamaModel) -> TokenTypes | None:
        """For a model with two token types or more, None for any other."""
        header = read_file(model.path)
        tensors = {tensor.name: tensor for tensor in header.tensors}
        types = tensors.get("token_types.weight")
        if header.metadata["general.architecture"] != "bert" or types is None or types.shape[1] < 2:
            return None
        return cls(model, header, tensors["token_embd.weight"], types)

    def vectors(self, ids: array[int], second: int) -> np.ndarray:
        """float32 `(len(ids), width)`: embeddings of a pair's tokens; its second text begins at index `second`."""
        table = np.stack([self._floats(self._table[token], self._decode) for token in ids])
        table[second:] += self._difference
        return table

    @staticmethod
    def _map(model: LlamaModel, header: Header, tensor: TensorInfo) -> np.ndarray:
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
