"""The log files of the daemon's child processes, one for each kind."""

from __future__ import annotations

from pathlib import Path

LOG_BYTES = 10 << 20


def log_file(folder: Path, name: str) -> Path:
    """The file in `folder` to which children of the kind `name` print; above `LOG_BYTES` a new one is begun.

    The older one is kept as `NAME.log.1`. Raises OSError.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{name}.log"
    if path.exists() and path.stat().st_size > LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return path
