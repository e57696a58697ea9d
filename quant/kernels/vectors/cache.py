"""The folder in which compiled kernels stay from one process to the next.

Its name is a hash of all that machine code depends on: the sources of `quant.kernels`, Numba's version, the CPU's name
and features. (Numba alone looks only at the file of the function that it compiles.) Cached code is pickled, so the
folder must be ours alone: mode 0700, and no link. Where that is impossible, this process uses a temporary folder.

Every change makes a new folder. A process holds a lock in its folder. The SPARE folders that were used last stay as
well, because two versions may take turns and machines may share a home; older ones that nobody uses are removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path

import llvmlite.binding
import numba
import platformdirs

# Number of unused folders of other versions that stay.
SPARE = 3
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
    return (path if path.exists() else folder).stat().st_mtime


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
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    features = llvmlite.binding.get_host_cpu_features().flatten()
    for text in (numba.__version__, llvmlite.__version__, llvmlite.binding.get_host_cpu_name(), features):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]
