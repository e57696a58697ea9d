"""llama.cpp's GELU without its table: what it computed is replaced by the formula while it computes.

On a CPU it looks GELU up by the half-precision bits of its input, in a table of half-precision results, so that two
inputs that differ by the last bit of a float32 may come out 1e-3 apart. That is the engine's own error; whatever else
differs from transformers is ours. `struct ggml_tensor` is that of ggml.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import llama_cpp
import numpy as np

_GELU, _GATED = b"GELU", b"GEGLU"
_F32 = 0
_POINTER = ctypes.c_void_p


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int32),
        ("buffer", _POINTER),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int32),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", _POINTER * 10),
        ("view_src", _POINTER),
        ("view_offs", ctypes.c_size_t),
        ("data", _POINTER),
        ("name", ctypes.c_char * 64),
    )

    def values(self) -> np.ndarray:
        """The float32 values where they lie."""
        shape, strides = tuple(self.ne)[::-1], tuple(self.nb)[::-1]
        room = (ctypes.c_char * (shape[0] * strides[0])).from_address(self.data)
        return np.ndarray(shape, np.float32, room, strides=strides)

    def sources(self) -> Iterator[_Tensor]:
        return (_Tensor.from_address(address) for address in self.src if address)


class ExactGelu:
    """A callback for `cb_eval` of a context; `seen` counts the activations that were replaced."""

    def __init__(self) -> None:
        self._describe = llama_cpp.llama_cpp._lib.ggml_op_desc
        self._describe.argtypes, self._describe.restype = (_POINTER,), ctypes.c_char_p
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self._computed)
        self.seen = 0
        # GELU is computed in place, so its input is kept from the step before.
        self._before = np.zeros(0, np.float32)

    def _computed(self, address: int, ask: bool, _: Any) -> bool:
        if ask:
            return True
        tensor = _Tensor.from_address(address)
        kind = self._describe(address)
        if kind in (_GELU, _GATED):
            self.seen += 1
            tensor.values()[...] = gelu(self._before) if kind == _GELU else self._gated(tensor)
        elif tensor.type == _F32:
            self._before = tensor.values().copy()
        return True

    @staticmethod
    def _gated(tensor: _Tensor) -> np.ndarray:
        both = [source.values() for source in tensor.sources()]
        if len(both) == 1:
            both = np.split(both[0], 2, axis=-1)
        gate, up = both[::-1] if tensor.op_params[1] else both
        return gelu(gate) * up


def gelu(x: np.ndarray) -> np.ndarray:
    """The approximation by tanh, as llama.cpp has it."""
    wide = x.astype(np.float64)
    return (0.5 * wide * (1 + np.tanh(0.7978845608028654 * wide * (1 + 0.044715 * wide * wide)))).astype(np.float32)
