"""The body of a request, read by a thread while it comes."""

from __future__ import annotations

import asyncio
import threading
from collections import deque

from aiohttp import web

from server.errors import BadBody

# Bytes that may wait for the thread.
_MOST = 8 << 20
# Seconds without a byte after which a client counts as gone.
IDLE_SECONDS = 60.0


class BodyStream:
    """Bytes from the event loop to one thread. `fill` is for the loop, `readinto` for the thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parts: deque[memoryview] = deque()
        self._changed = threading.Condition()
        self._waiting = 0
        self._room = asyncio.Event()
        self._ended = False
        self._failure: BaseException | None = None

    async def fill(self, request: web.Request) -> None:
        """Take the body as it comes, up to its end, or until the thread wants no more."""
        try:
            while part := await self._next(request):
                with self._changed:
                    if self._ended:
                        return
                    self._parts.append(memoryview(part))
                    self._waiting += len(part)
                    self._room.clear()
                    self._changed.notify()
                    full = self._waiting > _MOST
                if full:
                    await self._room.wait()
            self._end(None)
        except BaseException as error:
            self._end(error)
            if not isinstance(error, BadBody):
                raise

    def stop(self) -> None:
        """Want no more; from any thread."""
        self._end(InterruptedError("the import was ended"))
        self._loop.call_soon_threadsafe(self._room.set)

    def readinto(self, target: memoryview) -> int:
        """The next bytes, as many as there are; 0 at the end. Raises what ended the body early."""
        with self._changed:
            self._changed.wait_for(lambda: self._parts or self._ended)
            if not self._parts:
                if self._failure is not None:
                    raise self._failure
                return 0
            part = self._parts.popleft()
            count = min(len(part), len(target))
            target[:count] = part[:count]
            if count < len(part):
                self._parts.appendleft(part[count:])
            before, self._waiting = self._waiting, self._waiting - count
        if before > _MOST // 2 >= self._waiting:
            self._loop.call_soon_threadsafe(self._room.set)
        return count

    async def _next(self, request: web.Request) -> bytes:
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                return await request.content.readany()
        except TimeoutError:
            raise BadBody("the body came too slowly", "send it whole") from None
        except (web.RequestPayloadError, ValueError):
            raise BadBody("the body ends too early, or is not in chunks as it says", "send it whole") from None

    def _end(self, failure: BaseException | None) -> None:
        with self._changed:
            if not self._ended:
                self._ended, self._failure = True, failure
            self._changed.notify()
