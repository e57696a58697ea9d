"""Words of the daemon to a service manager: that it is ready, that it lives, that it stops. Source: sd_notify(3)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class Manager:
    """A service manager that listens at `address`, "" for none; it ends a process that is silent for `patience` s."""

    def __init__(self, address: str, patience: float) -> None:
        # A name in the abstract namespace is written with `@` for the zero byte.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._patience = patience

    def say(self, *words: str) -> None:
        """Send some assignments, such as `READY=1`; a manager that cannot be reached is passed over."""
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)  # a manager that does not read must not hold up the event loop
            sender.sendto("\n".join(words).encode(), self._address)

    @asynccontextmanager
    async def watched(self, status: str) -> AsyncGenerator[None]:
        """Say that the daemon is ready, give signs of life while the event loop turns, and say when it stops."""
        self.say("READY=1", f"STATUS={status}")
        beating = asyncio.create_task(self._beat()) if self._patience and self._address else None
        try:
            yield
        finally:
            self.say("STOPPING=1", "STATUS=lets running answers end")
            if beating:
                beating.cancel()
                await asyncio.wait([beating])

    async def _beat(self) -> None:
        while True:
            self.say("WATCHDOG=1")
            await asyncio.sleep(self._patience / 3)
