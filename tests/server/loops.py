"""Tests that run in an event loop of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any


def alone(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """The test in a loop of its own."""

    async def run(**arguments: Any) -> None:
        await test(**arguments)

    @wraps(test)
    def begin(**arguments: Any) -> None:
        asyncio.run(run(**arguments))

    return begin
