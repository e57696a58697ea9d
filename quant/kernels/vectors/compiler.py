"""How kernels are compiled: once for each signature, by Numba, into the cache."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numba

from quant.kernels.vectors import cache

_OPTIONS = {"error_model": "numpy", "nogil": True}
_done: list[Any] = []
_lock = threading.RLock()


class Kernel:
    """A function compiled for one signature, on its first call or ahead of it, or taken from the cache."""

    def __init__(self, function: Callable[..., Any], signature: str) -> None:
        self._function = function
        self._signature = signature
        self._compiled: Any = None

    def __call__(self, *arguments: Any) -> Any:
        """Run it."""
        return (self._compiled or self.compile())(*arguments)

    def compile(self) -> Any:
        """Be ready to be called."""
        with _lock:
            if self._compiled is None:
                # Numba reads the setting when a function is decorated, and nobody else may have its folder changed.
                before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(cache.folder())
                try:
                    self._compiled = numba.njit(self._signature, cache=True, **_OPTIONS)(self._function)
                finally:
                    numba.config.CACHE_DIR = before
                _done.append(self._compiled)
        return self._compiled


def kernel(signature: str) -> Callable[[Callable[..., Any]], Kernel]:
    """Make the function a kernel with this signature, in Numba's notation."""
    return lambda function: Kernel(function, signature)


def compiled() -> int:
    """Kernels that this process has compiled itself, instead of taking them from the cache."""
    return sum(1 for function in _done if function.stats.cache_misses)


def part(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that kernels call: compiled into them, so it needs neither signature nor cache."""
    result: Callable[..., Any] = numba.njit(forceinline=True, **_OPTIONS)(function)
    return result
