"""Talk to a real worker process from a test: what the daemon's pool does, in forty lines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime import messages as m
from runtime.child import Child


@dataclass
class Answer:
    text: str = ""
    deltas: list[m.Delta] = field(default_factory=list)
    started: m.Started | None = None
    end: m.Finished | m.Failed | m.Vectors | m.Tokens | None = None


class Worker:
    """Frames by request id; `ready` is the first answer (or the failure of the load)."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.ready: Any = None
        self.beats: list[m.Beat] = []
        self._beaten = asyncio.Event()
        self._boxes: dict[int, asyncio.Queue[Any]] = {}
        self._next = 1

    async def load(self, load: m.Load) -> None:
        await self.child.send(load)
        self.ready = await self.child.receive()
        if self.ready is None:
            return
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while (frame := await self.child.receive()) is not None:
            if isinstance(frame, m.Beat):
                self.beats.append(frame)
                self._beaten.set()
            else:
                self._boxes[frame.id].put_nowait(frame)
        for box in self._boxes.values():
            box.put_nowait(None)

    @property
    def last(self) -> int:
        """The id of the last request."""
        return self._next - 1

    async def beat(self) -> None:
        """Wait for the next beat."""
        self._beaten.clear()
        await self._beaten.wait()

    async def frames(self, request: Any) -> AsyncIterator[Any]:
        """Send `request` under a new id and yield what comes back, to the last answer or the worker's death."""
        async for frame in await self.begin(request):
            yield frame

    async def begin(self, request: Any) -> AsyncIterator[Any]:
        """Send `request` under a new id; its frames, which may be read later."""
        request.id, self._next = self._next, self._next + 1
        box = self._boxes[request.id] = asyncio.Queue()
        await self.child.send(request)
        return self._arriving(box, getattr(request, "count", 1))

    async def _arriving(self, box: asyncio.Queue[Any], open_answers: int) -> AsyncIterator[Any]:
        while open_answers and (frame := await box.get()) is not None:
            yield frame
            if isinstance(frame, m.Failed | m.Vectors | m.Tokens):
                return
            open_answers -= isinstance(frame, m.Finished)

    async def ask(self, request: Any) -> Answer:
        """The whole answer number 0."""
        answer = Answer()
        async for frame in self.frames(request):
            match frame:
                case m.Started():
                    answer.started = frame
                case m.Delta(index=0):
                    answer.text += frame.text
                    answer.deltas.append(frame)
                case m.Delta():
                    pass
                case _:
                    answer.end = frame
        return answer


def load_frame(
    path: Path | str, context: int = 1024, sequences: int = 8, kv_type: str = "F16", **options: Any
) -> m.Load:
    """A worker's first frame, on one thread."""
    return m.Load(
        **{"path": str(path), "threads": 1, "queue": 64, **options},
        cache_config=m.CacheConfig(context, sequences, kv_type),
    )


@asynccontextmanager
async def working(load: m.Load) -> AsyncIterator[Worker]:
    """A worker that has loaded (or failed to: see `ready`)."""
    child = await Child.spawn("runtime.worker", frames=m.FromWorker)
    worker = Worker(child)
    try:
        await worker.load(load)
        yield worker
    finally:
        child.kill()
        await child.wait()
        if isinstance(worker.ready, m.Ready):
            await worker.reading
