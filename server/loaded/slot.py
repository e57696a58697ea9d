"""The one record of a loaded model: its worker, who waits for it, when it goes, how often it crashed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from server.loaded.wish import LoadWish
from server.loaded.worker import Worker

CRASHES_IN_A_ROW = 3
REST_SECONDS = 30.0


@dataclass
class Slot:
    """One model that was asked for. A slot outlives its worker, so that crashes are counted from one to the next.

    Times are by the event loop's clock.
    """

    keep_alive: float
    """Seconds that the worker stays after its last request, as was asked for; below 0 it stays for ever."""
    retired: bool = False
    """Whether the store no longer has this model: nobody can ask for it again, so it goes after its last request."""
    worker: Worker | None = None
    pending: int = 0
    """Requests that wait for the worker or are being answered by it."""
    largest_context: int = 0
    """The largest context that a request asked for. A worker is only exchanged for one with more than this: a context
    that was clamped once, for want of memory, is not tried again with every request."""
    crashes: int = 0
    """Workers in a row that crashed before they answered anything."""
    rests_until: float = 0.0
    """Until then no worker is started, because the last ones crashed."""
    _expiry: asyncio.TimerHandle | None = field(default=None, repr=False)

    @property
    def process(self) -> Worker | None:
        """The worker, unless its process has ended; it may be on its way out."""
        return None if self.worker is None or self.worker.dead else self.worker

    @property
    def usable(self) -> Worker | None:
        """The worker, unless it has ended or is on its way out; a request may be given to it."""
        return None if self.worker is None or self.worker.leaving else self.worker

    @property
    def stay(self) -> float:
        """Seconds that the worker stays after its last request; below 0 it stays for ever (it is pinned)."""
        return 0.0 if self.retired else self.keep_alive

    @property
    def pinned(self) -> bool:
        """Whether the worker stays for ever."""
        return self.stay < 0

    @property
    def holds(self) -> bool:
        """Whether the file of the model is open in a process, or a request waits that will open it."""
        return self.pending > 0 or self.process is not None

    def suits(self, worker: Worker, wish: LoadWish) -> bool:
        """Whether a request can take this worker: another one is made only in the place of an idle one."""
        changed = wish.kv_type not in (None, worker.kv_type) and worker.idle
        return not changed and not self.outgrown(worker, wish.context)

    def outgrown(self, worker: Worker, context: int | None) -> bool:
        """Whether a request wants more tokens than an idle worker holds, and more than any request wanted before."""
        if context is None or context <= worker.context or not worker.idle:
            return False
        return context > self.largest_context

    def seconds_left(self, now: float) -> float | None:
        """Seconds until the worker goes if nobody asks; None: it stays for ever."""
        if self.pinned:
            return None
        return max(0.0, self.stay if self._expiry is None else self._expiry.when() - now)

    def stop_clock(self) -> None:
        """The worker does not expire by itself any more."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def start_clock(self, expiry: asyncio.TimerHandle) -> None:
        """`expiry` ends the worker, unless the clock is stopped before."""
        self.stop_clock()
        self._expiry = expiry

    async def unload(self, worker: Worker) -> None:
        """End a worker of this model, which may not be the present one, and wait for its end."""
        if self.worker is worker:
            self.stop_clock()
        await worker.stop()

    def ended(self, worker: Worker, now: float) -> None:
        """Take note that a worker has ended; several crashes without an answer between them give the model a rest."""
        if self.worker is worker:
            self.stop_clock()
            self.worker = None
        if worker.crashed:
            self.crashes = 1 if worker.answered else self.crashes + 1
        if self.crashes >= CRASHES_IN_A_ROW:
            self.crashes = 0
            self.rests_until = now + REST_SECONDS
