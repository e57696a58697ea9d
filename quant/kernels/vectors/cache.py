"""The folder in which compiled kernels stay from one process to the next.

Its name is a hash of the versions of Python and Numba and of the CPU's name and features. In it, the name of a kernel's
file has a hash of the sources: the kernel's module and all modules of `quant.kernels` that it imports. So code
stays in use when `lm` is installed anew, elsewhere, or at a version in which these modules are the same. (Numba's own
names have the path of the source, and it looks only at the file of the function.) Cached code is pickled, so the folder
must be ours alone: mode 0700, and no link. Where that is impossible, this process uses a temporary folder.

No compiled code comes with `lm`: a pickle for one CPU, one Python and one Numba would seldom fit.

A process holds a lock in its folder. The SPARE folders that were used last stay as well, because machines may share a
home; older ones that nobody uses are removed. A kernel's SPARE older files stay, because two versions may take turns.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import functools
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import platformdirs
from numba.core.caching import UserProvidedCacheLocator

# Number of unused folders of other machines, and of older files of a kernel, that stay.
SPARE = 3
_KERNELS = Path(__file__).parents[1]
_LOCK_FILE = ".used"
_NAME = re.compile(r"[0-9a-f]{16}")
_folder: list[Path] = []  # empty, or the one folder of this process


def configure(cache_dir: Path) -> None:
    """Keep compiled kernels under `cache_dir`. Call before the first use; later calls change nothing."""
    if not _folder:
        _folder.append(private(cache_dir / _fingerprint()))
        prune(cache_dir, _folder[0])


def folder() -> Path:
    """The folder in use, decided on the first call."""
    if not _folder:
        configure(platformdirs.user_cache_path("lm") / "kernels")
    return _folder[0]


def use(folder: Path) -> None:
    """Keep compiled kernels in `folder`, which another process has in use and names."""
    _folder[:] = [folder]


class CodeLocator(UserProvidedCacheLocator):  # type: ignore[misc]
    """Where Numba keeps the code of a function: the folder, and a name with the hash of its sources."""

    def __init__(self, function: Callable[..., Any], path: str) -> None:
        self._py_file = path  # Numba names it in a warning
        self._lineno = function.__code__.co_firstlineno
        self._stamp = stamp(Path(path))

    def get_cache_path(self) -> str:
        """The folder in use."""
        return str(folder())

    def get_source_stamp(self) -> str:
        """The hash of the sources."""
        return self._stamp

    def get_disambiguator(self) -> str:
        """The part of the file's name that tells versions of a kernel apart."""
        return self._stamp

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> CodeLocator:
        """The locator of a function in that file."""
        return cls(py_func, py_file)


def code_files(function: Callable[..., Any]) -> tuple[list[Path], list[Path]]:
    """The index files of a kernel in the folder: made of its present sources, and made of older ones, newest first."""
    path = Path(function.__code__.co_filename)
    name = f"{path.stem}.{function.__qualname__}-"
    mine: list[Path] = []
    others: list[Path] = []
    for index in folder().glob(f"{name}*.nbi"):
        (mine if index.name.startswith(f"{name}{stamp(path)}.") else others).append(index)
    return mine, sorted(others, key=_modified, reverse=True)


def tidy(function: Callable[..., Any]) -> None:
    """Note that a kernel's code was used; remove older code but for the SPARE files that were used last."""
    with contextlib.suppress(OSError):
        mine, others = code_files(function)
        for index in mine:
            os.utime(index)
        for index in others[SPARE:]:
            for file in folder().glob(f"{index.stem}.*"):
                file.unlink(missing_ok=True)  # a process that reads it now compiles the kernel itself


@functools.cache
def stamp(path: Path) -> str:
    """A hash of the sources of a module and of all modules of `quant.kernels` that it imports, at any depth."""
    digest = hashlib.sha256()
    seen, waiting = {path}, [path]
    while waiting:
        found = _imports(waiting.pop()) - seen
        seen |= found
        waiting += found
    for file in sorted(seen, key=lambda file: file.name):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@functools.cache
def _imports(path: Path) -> set[Path]:
    """The files of `quant.kernels` that a module imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    files = (_KERNELS.parents[1] / f"{name.replace('.', '/')}.py" for name in names)
    return {file for file in files if file.is_relative_to(_KERNELS) and file.is_file()}


def private(folder: Path) -> Path:
    """`folder`, made if need be and locked, or a new temporary folder where `folder` cannot be ours alone."""
    with contextlib.suppress(OSError):
        while not folder.is_symlink():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)  # fails unless it is ours
            if _lock(folder):
                return folder
    return Path(tempfile.mkdtemp(prefix="lm-kernels-"))


def prune(cache_dir: Path, mine: Path) -> None:
    """Remove the folders of other versions that no process uses, but for the SPARE that were used last."""
    with contextlib.suppress(OSError):
        others = [path for path in cache_dir.iterdir() if path != mine and path.is_dir() and not path.is_symlink()]
        for gone in (path for path in others if path.suffix == ".gone" and _NAME.fullmatch(path.stem)):
            shutil.rmtree(gone, ignore_errors=True)  # by a process that ended in the middle of it
        named = sorted((path for path in others if _NAME.fullmatch(path.name)), key=_last_used, reverse=True)
        for path in named[SPARE:]:
            _remove(path)


def _lock(folder: Path) -> bool:
    """Lock `folder` against `_remove` until this process ends; False when it was removed before that was done."""
    path = folder / _LOCK_FILE
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with contextlib.suppress(OSError):  # not every file system has locks; on those nothing is ever removed
        fcntl.flock(lock, fcntl.LOCK_SH)
    os.utime(lock)
    if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
        return True
    os.close(lock)
    return False


def _last_used(folder: Path) -> float:
    """When a process last began to use the folder, in seconds since 1970; early versions made no lock file."""
    path = folder / _LOCK_FILE
    return _modified(path if path.exists() else folder)


def _modified(path: Path) -> float:
    return path.stat().st_mtime


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        lock = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while it is in use
            # Renamed first: a process that looks for the folder finds all of it or nothing.
            gone = folder.rename(folder.with_suffix(".gone"))
            shutil.rmtree(gone, ignore_errors=True)
        finally:
            os.close(lock)


def _fingerprint() -> str:
    digest = hashlib.sha256()
    # Numba takes the processor's name and features from these settings, where they are set.
    cpu = numba.config.CPU_NAME or llvmlite.binding.get_host_cpu_name()
    features = numba.config.CPU_FEATURES or llvmlite.binding.get_host_cpu_features().flatten()
    for text in (str(sys.implementation.cache_tag), numba.__version__, llvmlite.__version__, cpu, features):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]
