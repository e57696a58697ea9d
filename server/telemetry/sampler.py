"""The daemon's side: a sample of the metrics every so often, written into the ring."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from server.config import Config
from server.telemetry.otlp import When, line_of
from server.telemetry.ring import Ring

if TYPE_CHECKING:
    from prometheus_client import Metric

log = logging.getLogger("lm.telemetry")
_MIB = 1 << 20
# A clock that is set by more than this (nanoseconds) has the start counted anew.
_JUMP = 2_000_000_000


class Clock:
    """The times of samples. The start goes along with a clock that is set, so that no counter begins in the future."""

    def __init__(self, wall: Callable[[], int] = time.time_ns, steady: Callable[[], int] = time.monotonic_ns) -> None:
        """Begin now; both count nanoseconds, and only `wall` can be set."""
        self._wall, self._steady = wall, steady
        self._began, self._start = steady(), wall()

    def now(self) -> When:
        """The start and this moment."""
        now, since = self._wall(), self._steady() - self._began
        if abs(now - since - self._start) > _JUMP:
            self._start = now - since
        return When(min(self._start, now), now)


class MetricsKeeper:
    """Writes a sample every `metrics_every` seconds; 0 is never."""

    def __init__(self, config: Config, metrics: Callable[[], Callable[[], Iterable[Metric]]]) -> None:
        """`metrics` is called in the event loop, and what it returns in a thread: it makes the metrics."""
        self._every = config.metrics_every
        self._ring = Ring(config.metrics_folder, config.metrics_mib * _MIB)
        self._metrics = metrics
        self._clock = Clock()
        self._fails = ""
        self.lost = 0

    async def run(self) -> None:
        """Take samples until cancelled."""
        while self._every > 0:
            await asyncio.sleep(self._every)
            await self.take()

    async def take(self) -> None:
        """Write one sample; where that fails it is lost, and the log says so once."""
        collect = self._metrics()
        try:
            await asyncio.to_thread(lambda: self._ring.append(line_of(collect(), self._clock.now())))
        except OSError as error:
            self.lost += 1
            why = error.strerror or str(error)
            if why != self._fails:
                log.warning("samples of metrics cannot be kept: %s", why)
            self._fails = why
        else:
            if self._fails:
                log.warning("samples of metrics are kept again; %d are lost", self.lost)
            self._fails = ""
