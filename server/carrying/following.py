"""Work in a thread whose lines a client follows while it goes on."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

Line = dict[str, Any]
Send = Callable[[Line], None]
# Seconds between two lines about the progress of the same thing.
_EVERY = 0.1


async def follow(work: Callable[[Send], Line | None], stop: Callable[[], None]) -> AsyncGenerator[Line]:
    """The lines of `work`, which gets a function to send them with, and at last the line that it returns.

    Lines with `completed` are progress: some are left out, but the last line about a blob is not.
    When the client leaves, `stop` is called, and the end of the thread is waited for. Raises what `work` raises.
    """
    loop, lines = asyncio.get_running_loop(), asyncio.Queue[Line | None]()
    latest: tuple[Any, float] = ("", 0.0)

    def send(line: Line) -> None:
        nonlocal latest
        if "completed" in line and line["completed"] < line["total"]:
            key, now = (line.get("phase"), line.get("digest")), time.monotonic()
            if key == latest[0] and now - latest[1] < _EVERY:
                return
            latest = key, now
        loop.call_soon_threadsafe(lines.put_nowait, line)

    def ended(task: asyncio.Task[Line | None]) -> None:
        if not task.cancelled():
            task.exception()  # asked for here, or asyncio logs a traceback where the client left just before
        lines.put_nowait(None)

    task = asyncio.create_task(asyncio.to_thread(work, send))
    task.add_done_callback(ended)
    try:
        while (line := await lines.get()) is not None:
            yield line
        if (last := await task) is not None:
            yield last
    finally:
        if not task.done():
            stop()
            with contextlib.suppress(Exception):
                await asyncio.shield(task)
