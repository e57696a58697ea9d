"""The values that llama.cpp computes inside a step: read, and replaced by others, while it goes on."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from quant.types import QuantType
from runtime.llama.library import library

# Called with a tensor's name and its values; what it returns takes their place, unless it is None.
Watcher = Callable[[str, Any], Any]
_F32 = QuantType.by_name("F32").id


class Watch:
    """A callback for `ContextParams.watch`, kept as long as the context.

    `watcher` is called for each tensor of the graph whose name `wanted` is true of, as soon as it is computed: with the
    name, such as `l_out-3`, and its values, float32 `(rows, width)`, a copy. An exception ends the step, and stands in
    `error`.
    """

    def __init__(self, wanted: Callable[[str], bool], watcher: Watcher) -> None:
        self.error: BaseException | None = None
        self._wanted, self._watcher = wanted, watcher
        self.callback = library().ggml_backend_sched_eval_callback(self._seen)
        self._lib = lib = library()._lib
        for name, result, arguments in (
            ("ggml_get_name", ctypes.c_char_p, (ctypes.c_void_p,)),
            ("ggml_nelements", ctypes.c_int64, (ctypes.c_void_p,)),
            ("ggml_nrows", ctypes.c_int64, (ctypes.c_void_p,)),
            ("ggml_backend_tensor_get", None, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)),
            ("ggml_backend_tensor_set", None, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)),
        ):
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments

    def _seen(self, tensor: int, asks: bool, _: Any) -> bool:
        """Answer whether the values are wanted, where llama.cpp `asks`; otherwise take them, and say whether to go on.

        llama.cpp computes the graph up to a tensor that is wanted, and waits for this.
        """
        name = (self._lib.ggml_get_name(tensor) or b"").decode(errors="replace")
        if asks:
            return self.error is None and self._wanted(name)
        try:
            self._take(tensor, name)
        except BaseException as error:  # it may not pass through llama.cpp
            self.error = error
        return self.error is None

    def _take(self, tensor: int, name: str) -> None:
        import numpy as np  # only a comparison looks at numbers

        rows, count = self._lib.ggml_nrows(tensor), self._lib.ggml_nelements(tensor)
        values = np.empty((rows, count // rows), np.float32)
        self._lib.ggml_backend_tensor_get(tensor, values.ctypes.data, 0, values.nbytes)
        others = self._watcher(name, values)
        if others is not None:
            others = np.ascontiguousarray(others, np.float32).reshape(values.shape)
            self._lib.ggml_backend_tensor_set(tensor, others.ctypes.data, 0, others.nbytes)
