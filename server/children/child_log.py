"""The log files of the daemon's child processes, one for each kind."""

from __future__ import annotations

import os
from pathlib import Path

LOG_BYTES = 10 << 20


def log_file(folder: Path, name: str) -> Path:
    """The file in `folder` to which children of the kind `name` print; above `LOG_BYTES` a new one is begun.

    The older one is kept as `NAME.log.1`. Where no file can be written, on a disk that is full or read-only, it is the
    null device: a log is no reason to refuse work.
    """
    path = folder / f"{name}.log"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        may_write = os.access(path if path.exists() else folder, os.W_OK)
    except OSError:
        may_write = False
    return path if may_write else Path(os.devnull)
