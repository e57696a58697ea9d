"""How kernels are compiled, and where the machine code is kept from one process to the next.

The folder's name is a hash of all that machine code depends on: the sources of this package (Numba itself looks only at
the file of the function it compiles), Numba's version, the CPU's name and its features. Cached code is pickled, so the
folder must be ours alone: mode 0700, no link; where that cannot be had, a temporary folder serves this process.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import platformdirs

_OPTIONS = {"error_model": "numpy", "nogil": True}
_folder: list[Path] = []


def configure(cache_dir: Path) -> None:
    """Keep compiled kernels under `cache_dir`. Call before the first use; later calls change nothing."""
    if not _folder:
        _folder.append(_private(cache_dir / _fingerprint()))


def cache_folder() -> Path:
    """The folder in use, decided on the first call."""
    if not _folder:
        configure(platformdirs.user_cache_path("lm") / "kernels")
    return _folder[0]


def kernel(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile at once for one signature, or take the machine code from the cache."""

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        # Numba reads the setting when a function is decorated, and nobody else may have its folder changed.
        before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(cache_folder())
        try:
            result: Callable[..., Any] = numba.njit(signature, cache=True, **_OPTIONS)(function)
        finally:
            numba.config.CACHE_DIR = before
        return result

    return compiled


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
