"""Replacing a small file in one step: what is measured or learned, and the daemon's address."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def replace_file(path: Path, data: bytes) -> None:
    """Give the file `path` the content `data`; its folder is made where it is missing. Raises OSError.

    Guarantees: a reader sees the whole old content or the whole new one, whenever this process ends. The last writer
    wins. The file has mode 0600, a folder that is made 0700.

    Not guaranteed: that the content survives a loss of power. Nothing is synced to the disk, because all of it can be
    found out again. `registry/store/fsops.py` has the functions for data that must last.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove_leftovers(path)
    with tempfile.NamedTemporaryFile(prefix=f".{path.name}.{os.getpid()}.", dir=path.parent, delete=False) as file:
        aside = Path(file.name)
        try:
            file.write(data)
            file.flush()
            aside.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink()
            raise


def _remove_leftovers(path: Path) -> None:
    """Remove what processes left that were killed while they replaced this file."""
    prefix = f".{path.name}."
    for left in [each for each in path.parent.iterdir() if each.name.startswith(prefix)]:
        number = left.name.removeprefix(prefix).partition(".")[0]
        if not (number.isdecimal() and _runs(int(number))):
            with contextlib.suppress(OSError):
                left.unlink()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
