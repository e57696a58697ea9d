"""The log file and the end of every child process of the daemon, whatever its errand."""

from __future__ import annotations

import asyncio
from pathlib import Path

from runtime.child import Child

LOG_BYTES = 10 << 20
LINGER_SECONDS = 0.5


def log_file(folder: Path, name: str) -> Path:
    """The file in `folder` to which children of the kind `name` print; above `LOG_BYTES` a new one is begun.

    The older one is kept as `NAME.log.1`. Raises OSError.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{name}.log"
    if path.exists() and path.stat().st_size > LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return path


async def reap(child: Child) -> None:
    """Wait for the end of a child whose socket is closed; kill it when it lingers."""
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()
