"""How kernels are compiled: once for each signature, by Numba, into the cache."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba

from quant.kernels.vectors import cache

# Kernels are called from Python and parts from kernels, so what Numba would make for other callers is left out. That
# saves a third of the time that compilation takes.
_OPTIONS = {"error_model": "numpy", "nogil": True, "no_cfunc_wrapper": True}
_ready: list[Any] = []
_lock = threading.RLock()


class Kernel:
    """A function that is compiled for one signature, or loaded from the cache, on its first call or by `compile`."""

    def __init__(self, function: Callable[..., Any], signature: str) -> None:
        self._function = function
        self._signature = signature
        self._compiled: Any = None
        self.name = f"{Path(function.__code__.co_filename).stem}.{function.__qualname__}"

    def __call__(self, *arguments: Any) -> Any:
        """Run the compiled function."""
        return (self._compiled or self.compile())(*arguments)

    @property
    def is_compiled(self) -> bool:
        """Whether it is compiled already, here or in the cache."""
        return self._compiled is not None or bool(cache.code_files(self._function)[0])

    def compile(self) -> Any:
        """The compiled function, made now if there is none yet; from any thread."""
        with _lock:
            if self._compiled is None:
                # Numba reads this setting when a function is decorated. It is for the whole process, so it is put back.
                before = numba.config.CACHE_LOCATOR_CLASSES
                numba.config.CACHE_LOCATOR_CLASSES = f"{cache.__name__}.{cache.CodeLocator.__name__}"
                try:
                    self._compiled = numba.njit(self._signature, cache=True, **_OPTIONS)(self._function)
                finally:
                    numba.config.CACHE_LOCATOR_CLASSES = before
                _ready.append(self._compiled)
                cache.tidy(self._function)
        return self._compiled


@contextmanager
def reserved() -> Iterator[None]:
    """Let no other thread of this process compile: whoever calls a kernel that is not compiled waits."""
    with _lock:
        yield


def kernel(signature: str) -> Callable[[Callable[..., Any]], Kernel]:
    """Make the function a kernel with this signature, in Numba's notation."""
    return lambda function: Kernel(function, signature)


def compilations() -> int:
    """The number of kernels that this process has compiled itself, instead of loading them from the cache."""
    return sum(1 for function in _ready if function.stats.cache_misses)


def part(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that kernels call: compiled into them, so it needs neither signature nor cache."""
    result: Callable[..., Any] = numba.njit(forceinline=True, no_cpython_wrapper=True, **_OPTIONS)(function)
    return result
