"""Work that nobody waits for: its processes stand still while somebody asks, and take a share of the time.

Whoever does such work sets `BACKGROUND` in its own task. Processes that are started from there by `task_process` belong
to it. They are stopped by SIGSTOP, which takes effect at once and costs nothing: their work goes on where it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from runtime.child import Child

# Seconds of a turn, of which the processes compute for their share.
_TURN = 0.4


class BackgroundWork:
    """The processes of one piece of work. `held` says why they stand still, `ended` why they were ended; "" if not."""

    def __init__(self, share: float = 1.0) -> None:
        """`share` of the time, above 0 and at most 1, is for the work."""
        self._share = share
        self._children: set[Child] = set()
        self._gone = asyncio.Event()
        self._gone.set()
        self._resting = False
        self._timer: asyncio.TimerHandle | None = None
        self.held = ""
        self.ended = ""

    def hold(self, why: str) -> None:
        """Let the processes stand still until `release`."""
        self.held = why
        self._apply()

    def release(self) -> None:
        """Let them go on."""
        self.held = ""
        self._apply()

    @property
    def has_processes(self) -> bool:
        """Whether a process of it runs or stands still: it has memory then."""
        return bool(self._children)

    async def end(self, why: str) -> None:
        """End the processes, and wait until they are gone; another that is started ends too.

        Their work so far is kept on the disk.
        """
        self.ended = why
        for child in self._children:
            child.kill()
        await self._gone.wait()

    @contextmanager
    def has(self, child: Child) -> Iterator[None]:
        """A process belongs to the work while the block runs."""
        self._children.add(child)
        self._gone.clear()
        self._apply()
        if self.ended:
            child.kill()
        if self._timer is None and self._share < 1:
            self._turn()
        try:
            yield
        finally:
            self._children.discard(child)
            if not self._children:
                self._gone.set()

    def _turn(self) -> None:
        """Begin a turn of computing, or one of rest."""
        self._timer = None
        if not self._children:
            self._resting = False
            return
        self._resting = not self._resting
        self._apply()
        seconds = _TURN * ((1 - self._share) if self._resting else self._share)
        self._timer = asyncio.get_running_loop().call_later(seconds, self._turn)

    def _apply(self) -> None:
        for child in self._children:
            if self.held or self._resting:
                child.suspend()
            else:
                child.resume()


BACKGROUND: ContextVar[BackgroundWork | None] = ContextVar("background", default=None)
