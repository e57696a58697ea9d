"""Memory, loaded models and their speed, looked at once a second for all who listen, and kept for ten minutes.

While nobody listens there is a look every `IDLE_SECONDS` only, so that the last ten minutes are there for whoever
comes. A look reads a few files of /proc, which takes half a millisecond with one loaded model. Graphics cards are asked
by their driver's tool, which takes longer: in a thread, and only while somebody listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from registry.store.catalog import Model
from runtime.machine.hardware import Gpu, cards_now, memory_now
from server.loaded.estimate import resident_bytes
from server.loaded.pool import Pool
from server.loaded.worker import Worker

log = logging.getLogger("lm.watching")
STEP_SECONDS = 1.0
IDLE_SECONDS = 10.0
CARD_SECONDS = 5.0
# How far back the samples go.
KEPT_SECONDS = 600.0
# Tokens/s are a mean of the last seconds: over a shorter time single steps would show.
RATE_SECONDS = 3.0
Sees = Callable[[Model], bool]
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes of main memory that the worker of one model holds, and the tokens that it writes in a second."""

    model: Model
    weights: int
    cache: int
    compute: int
    rate: float = 0.0

    @classmethod
    def of(cls, worker: Worker, rate: float) -> Held:
        """As the kernel counts the process now; its own bytes are told apart by what llama.cpp said while it loaded.

        Weights are the mapped pages of the file that are in memory, and the copies that were repacked. All other bytes
        count as compute: graphs' buffers, copies of conversations, the process itself.
        """
        own, mapped = resident_bytes(worker.pid) or (0, 0)
        loaded = not worker.loading and worker.ready.exception() is None
        ready = worker.ready.result() if loaded else None
        copied = min(own, worker.need.repacked)
        cache = min(own - copied, ready.cache_bytes if ready else 0)
        weights = copied + min(mapped, ready.weights_bytes if ready else worker.model.size)
        return cls(worker.model, weights, cache, own - copied - cache, rate)


@dataclass(frozen=True, slots=True)
class Sample:
    """One look: bytes of main memory that lm may use (`limit`) and that are available.

    `at` is the time in s since 1970, `clock` the same moment by the clock that nobody sets.
    """

    at: float
    clock: float
    limit: int
    available: int
    held: tuple[Held, ...] = ()
    cards: tuple[Gpu, ...] = ()

    def memory(self, sees: Sees) -> dict[str, int]:
        """The limit and its parts, whose sum it is: what models that the caller sees hold, all else, and the rest.

        Mapped weights are pages that the kernel may drop, so it calls them available: here they are not free.
        """
        shown = [each for each in self.held if sees(each.model)]
        parts = {
            "weights": sum(each.weights for each in shown),
            "cache": sum(each.cache for each in shown),
            "compute": sum(each.compute for each in shown),
        }
        left = self.limit
        for name, size in parts.items():
            parts[name] = min(size, left)
            left -= parts[name]
        free = max(0, min(left, self.available - parts["weights"]))
        return {"limit": self.limit} | parts | {"others": left - free, "free": free}

    def rate(self, sees: Sees) -> float:
        """Tokens that the models which the caller sees write in a second."""
        return round(sum(each.rate for each in self.held if sees(each.model)), 1)


class Watcher:
    """Looks at the machine and at the pool, for any number of listeners together."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._samples: deque[Sample] = deque(maxlen=int(KEPT_SECONDS / STEP_SECONDS))
        self._written: deque[tuple[float, dict[str, int]]] = deque()
        self._listeners = 0
        self._came = asyncio.Event()
        self._changed = asyncio.Event()
        self._cards: tuple[Gpu, ...] = ()
        self._cards_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None
        self._task = asyncio.create_task(self._run())

    @property
    def listeners(self) -> int:
        """How many follow the samples now."""
        return self._listeners

    async def stop(self) -> None:
        """End the looks, and with them every listener's stream."""
        self._task.cancel()
        if self._asking:
            self._asking.cancel()
        await asyncio.wait([self._task])
        self._wake()

    def history(self) -> list[Sample]:
        """The samples of the last ten minutes, the oldest first."""
        return list(self._samples)

    def look(self) -> Sample:
        """A sample of now, kept with the others."""
        now = time.monotonic()
        memory, rates = memory_now(), self._rates()
        held = tuple(Held.of(worker, rates.get(worker.model.name, 0.0)) for worker in self._pool.processes())
        sample = Sample(time.time(), now, memory.limit, memory.available, held, self._cards)
        while self._samples and self._samples[0].clock <= now - KEPT_SECONDS:
            self._samples.popleft()
        self._samples.append(sample)
        return sample

    async def samples(self) -> AsyncGenerator[Sample]:
        """A sample at once, then one every second, until the daemon stops."""
        self._listeners += 1
        self._came.set()
        try:
            sample = self.look()
            while not self._task.done():
                yield sample
                while self._samples[-1] is sample and not self._task.done():
                    await self._changed.wait()
                sample = self._samples[-1]
        finally:
            self._listeners -= 1

    async def _run(self) -> None:
        while True:
            try:
                self.look()
            except Exception:
                log.exception("a look at the machine failed")
            self._wake()
            await self._pause()

    async def _pause(self) -> None:
        """Wait for the time of the next look; the first listener looks for itself, and then the seconds begin."""
        if not self._listeners:
            self._came.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_SECONDS):
                    await self._came.wait()
        if self._listeners:
            self._ask_cards()
            await asyncio.sleep(STEP_SECONDS)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _rates(self) -> dict[str, float]:
        """Tokens/s of each model over the last seconds; none for a model that has no earlier count."""
        now, counts = time.monotonic(), {tally.model.name: tally.written for tally in self._pool.tallies()}
        self._written.append((now, counts))
        while len(self._written) > 2 and now - self._written[1][0] >= RATE_SECONDS:
            self._written.popleft()
        then, before = self._written[0]
        passed = now - then
        return {name: max(0, count - before.get(name, 0)) / passed for name, count in counts.items()} if passed else {}

    def _ask_cards(self) -> None:
        now = time.monotonic()
        if now - self._cards_at >= CARD_SECONDS and (self._asking is None or self._asking.done()):
            self._cards_at = now
            self._asking = asyncio.create_task(self._look_at_cards())

    async def _look_at_cards(self) -> None:
        self._cards = await asyncio.to_thread(cards_now)


def columns(samples: Iterable[Sample], sees: Sees) -> Json:
    """Samples as lists of equal length, by part: shorter than an object for each."""
    rows = [{"at": round(each.at, 1), "tokens_per_second": each.rate(sees)} | each.memory(sees) for each in samples]
    names = ("at", "limit", "weights", "cache", "compute", "others", "free", "tokens_per_second")
    return {name: [row[name] for row in rows] for name in names}
