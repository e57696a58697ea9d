"""How kernels are compiled, and where the machine code is kept from one process to the next.

The folder's name is a hash of all that machine code depends on: the sources of this package (Numba itself looks only at
the file of the function it compiles), Numba's version, the CPU's name and its features. Cached code is pickled, so the
folder must be ours alone: mode 0700, no link; where that cannot be had, a temporary folder serves this process.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import platformdirs

_OPTIONS = {"error_model": "numpy", "nogil": True}
_folder: list[Path] = []
_done: list[Any] = []
_lock = threading.RLock()


def configure(cache_dir: Path) -> None:
    """Keep compiled kernels under `cache_dir`. Call before the first use; later calls change nothing."""
    if not _folder:
        _folder.append(_private(cache_dir / _fingerprint()))


def cache_folder() -> Path:
    """The folder in use, decided on the first call."""
    if not _folder:
        configure(platformdirs.user_cache_path("lm") / "kernels")
    return _folder[0]


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
                before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(cache_folder())
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


def _fingerprint() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    features = llvmlite.binding.get_host_cpu_features().flatten()
    for text in (numba.__version__, llvmlite.__version__, llvmlite.binding.get_host_cpu_name(), features):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


def _private(folder: Path) -> Path:
    """`folder`, made if need be, or a new temporary one where nobody else could have put code."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)  # fails unless it is ours
        if not folder.is_symlink():
            probe = folder / ".writable"
            probe.touch()
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="lm-kernels-"))
