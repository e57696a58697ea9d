"""The reference: ggml's own quantizers and decoders, in the library inside llama-cpp-python, called through ctypes.

Used by the kernel benchmark and by the kernels' tests. `dequantize_row_*` and `ggml_quantize_chunk` are declared in
ggml.h and ggml-quants.h of llama.cpp; one thread.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp.llama_cpp
import numpy as np
from numpy.typing import NDArray

from quant.types import QuantType

# Types whose quantizer aborts the process without importance.
NEED_IMPORTANCE = {QuantType.IQ1_S, QuantType.IQ1_M, QuantType.IQ2_XXS, QuantType.IQ2_XS}

_library: Any = llama_cpp.llama_cpp._lib
_library.ggml_quantize_chunk.restype = ctypes.c_size_t
_library.ggml_validate_row_data.restype = ctypes.c_bool


def quantize(
    x: NDArray[np.float32], type: QuantType, importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """float32[rows, columns] → uint8[rows, row_bytes], as `llama-quantize` does it."""
    rows, columns = x.shape
    out = np.zeros((rows, type.row_bytes(columns)), np.uint8)
    weights = None if importance is None else _pointer(importance)
    sizes = ctypes.c_int64(0), ctypes.c_int64(rows), ctypes.c_int64(columns)
    _library.ggml_quantize_chunk(type.id, _pointer(x), _pointer(out), *sizes, weights)
    return out


def prepare(type: QuantType) -> None:
    """Build the reference's tables for a type ahead of time; `quantize` does it otherwise."""
    _library.ggml_quantize_init(type.id)


def dequantize(blocks: NDArray[np.uint8], type: QuantType, columns: int) -> NDArray[np.float32]:
    """uint8[rows, row_bytes] → float32[rows, columns]."""
    if type is QuantType.F32:
        return blocks.view(np.float32)
    name = type.name if type.name.endswith("_K") else type.name.lower()
    names = {QuantType.F16: "ggml_fp16_to_fp32_row", QuantType.BF16: "ggml_bf16_to_fp32_row"}
    out = np.empty((len(blocks), columns), np.float32)
    function = getattr(
        _library, names.get(type, f"dequantize_row_{name.replace('Q', 'q', 1) if 'K' in name else name}")
    )
    function(_pointer(blocks), _pointer(out), ctypes.c_int64(out.size))
    return out


def valid(blocks: NDArray[np.uint8], type: QuantType) -> bool:
    """Does ggml accept the blocks?"""
    return bool(_library.ggml_validate_row_data(type.id, _pointer(blocks), ctypes.c_size_t(blocks.nbytes)))


def _pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return array.ctypes.data_as(ctypes.c_void_p)
