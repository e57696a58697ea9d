"""Turns at reading with models: one at a time, for two would share the memory and the folder of references.

BackgroundWork work has a turn as long as nobody else wants one: then its processes are ended, and it goes on later.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.children.background import BACKGROUND, BackgroundWork

_LOCK = asyncio.Lock()
_holder: BackgroundWork | None = None


def taken() -> bool:
    """Whether somebody has a turn who does not give it up."""
    return _LOCK.locked() and _holder is None


@asynccontextmanager
async def turn() -> AsyncIterator[None]:
    """Wait for a turn, and have it while the block runs."""
    global _holder
    own = BACKGROUND.get()
    if own is None and _holder is not None:
        await _holder.end("a measurement was asked for")
    async with _LOCK:
        _holder = own
        try:
            yield
        finally:
            _holder = None
