"""Which models are loaded: one worker each, started on demand, unloaded when nobody asks any more or room is needed.

Room: a load needs what `runtime.machine.fit` says. What is free, plus what our own workers would give back, must hold
it: the idle one that was used longest ago goes first, busy ones are waited for. A context that does not fit is halved
until it does; a model that does not fit even then is refused with both numbers. Loads are admitted one at a time, so
that two never count the same bytes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from registry.store.store import Model
from runtime.errors import DoesNotFit, QueueFull
from runtime.machine.advise import size
from runtime.machine.fit import Need, Shape
from runtime.machine.hardware import Hardware
from runtime.messages import Load
from server.children.child_log import log_file
from server.config import Config
from server.errors import Stopping, Unstable
from server.library import Library
from server.loaded.estimate import Estimator, held, smaller
from server.loaded.worker import STOPPING, Pace, Worker

log = logging.getLogger("lm.pool")
SMALLEST_CONTEXT = 512
CONTEXT_BUCKET = 1024
KV_TYPE = "F16"
CRASHES_IN_A_ROW = 3
REST_SECONDS = 30.0
WATCH_SECONDS = 1.0
# Bytes for what is outside a model's pool, or as much as the pool takes where that is more.
SPARE = 256 << 20


@dataclass
class Slot:
    """What the pool knows of one model beyond its worker."""

    keep_alive: float
    asked: int = 0
    crashes: int = 0
    rests_until: float = 0.0
    expires_at: float | None = None
    timer: asyncio.TimerHandle | None = None


@dataclass(frozen=True)
class Engine:
    """What workers are told to run: `llama`, or `fake` with a script."""

    name: str = "llama"
    script: dict[str, Any] = field(default_factory=dict)


class Pool:
    """The loaded models. `hardware` measures the machine anew at each call."""

    def __init__(self, config: Config, library: Library, hardware: Callable[[], Hardware], engine: Engine) -> None:
        self._config = config
        self._library = library
        self._hardware = hardware
        self._engine = engine
        # The queue, and those that are being answered: a burst arrives at the worker before it has let anybody in.
        self._bound = config.queue + config.sequences
        self._workers: dict[str, Worker] = {}
        self._slots: dict[str, Slot] = {}
        self._needs: dict[str, Need] = {}
        self._estimator = Estimator(config.cache, ask=engine.name == "llama")
        self._pending: Counter[str] = Counter()
        self._admission = asyncio.Lock()
        self._released = asyncio.Event()
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._watch = asyncio.create_task(self._watch_workers())

    @asynccontextmanager
    async def use(
        self, model: Model, context: int | None = None, keep_alive: float | None = None
    ) -> AsyncIterator[Worker]:
        """A worker that holds `model`, loaded if need be, with room for `context` tokens if that can be had.

        Raises QueueFull, DoesNotFit, Unstable, Stopping, and what loading raises.
        """
        if self._stopping:
            raise Stopping("the daemon is stopping", "start it again")
        key = model.blob_digest
        if self._pending[key] >= self._bound:
            raise QueueFull(f"{self._pending[key]} requests wait for `{model.name}` already", "try again in a moment")
        self._pending[key] += 1
        try:
            worker = await self._find(model, context)
            async with self._using(worker, key, keep_alive):
                await asyncio.shield(worker.ready)
                yield worker
        finally:
            self._pending[key] -= 1

    def loaded(self) -> list[tuple[Worker, float | None]]:
        """The workers that are ready, each with the seconds it stays if nobody asks (None: for ever), longest first."""
        now = asyncio.get_running_loop().time()
        rows = []
        for key, worker in self._workers.items():
            if worker.leaving or worker.loading:
                continue
            slot = self._slots[key]
            stays = slot.keep_alive if slot.expires_at is None else slot.expires_at - now
            rows.append((worker, None if slot.keep_alive < 0 else max(stays, 0.0)))
        return sorted(rows, key=lambda row: -(row[1] if row[1] is not None else float("inf")))

    def holds(self) -> set[str]:
        """Blob digests that workers have open."""
        return {key for key, worker in self._workers.items() if not worker.dead}

    def need(self, worker: Worker) -> Need:
        """What was predicted for a worker."""
        return self._needs.get(worker.model.blob_digest, Need(worker.memory, 0, 0))

    async def unload(self, model: Model) -> bool:
        """Unload now if idle, else as soon as the last request ends; False if it is not loaded."""
        worker = self._current(model)
        if worker is None:
            return False
        self._slots[model.blob_digest].keep_alive = 0.0
        if not worker.active:
            await self._remove(worker)
        return True

    async def drain(self, seconds: float) -> None:
        """Let running answers end for at most `seconds`, then end every worker. Nothing is admitted any more."""
        self._stopping = True
        deadline = asyncio.get_running_loop().time() + seconds
        while any(worker.active for worker in self._workers.values() if not worker.dead):
            self._released.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._released.wait()
            except TimeoutError:
                break
        self._watch.cancel()
        await asyncio.gather(*(worker.stop(STOPPING) for worker in list(self._workers.values())))

    @asynccontextmanager
    async def _using(self, worker: Worker, key: str, keep_alive: float | None) -> AsyncIterator[None]:
        """Count a user of the worker; when the last one leaves, the time to live begins."""
        slot = self._slots[key]
        if keep_alive is not None:
            slot.keep_alive = keep_alive
        if slot.timer is not None:
            slot.timer.cancel()
        slot.timer = slot.expires_at = None
        worker.active += 1
        try:
            yield
        finally:
            worker.active -= 1
            worker.last_used = asyncio.get_running_loop().time()
            if worker.answered:
                slot.crashes = 0
            self._released.set()
            if not worker.active and worker.answered and not worker.dead and self._engine.name == "llama":
                self._estimator.learn(worker.model.name, self.need(worker), held(worker.pid) - worker.spilled)
            if worker.pace and not any(other.active for other in self._workers.values()):
                self._background(self._learn_speed(worker, worker.pace))
            worker.pace = None
            if not worker.active and slot.keep_alive >= 0 and self._workers.get(key) is worker:
                slot.expires_at = worker.last_used + slot.keep_alive
                slot.timer = asyncio.get_running_loop().call_at(slot.expires_at, self._expire, worker)

    async def _learn_speed(self, worker: Worker, pace: Pace) -> None:
        """Let an answer that had the machine to itself correct what later ones are predicted to take."""
        if self._engine.name == "llama" and not self.need(worker).card_layers:
            facts, name = await self._library.facts(worker.model), worker.model.name
            await asyncio.to_thread(
                self._estimator.learn_speed, name, facts, worker.threads, pace.context, pace.seconds
            )

    def _expire(self, worker: Worker) -> None:
        if not worker.active:
            self._background(self._remove(worker))

    def _background(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _find(self, model: Model, context: int | None) -> Worker:
        """The model's worker, started or exchanged for a larger one where that is needed and possible."""
        worker = self._current(model)
        if worker is not None and not self._too_small(worker, context):
            return worker
        async with self._admission:
            worker = self._current(model)  # somebody else may have started it while we waited
            if worker is not None and not self._too_small(worker, context):
                return worker
            shape = await self._library.shape(model)
            wanted = self._context(shape, context)
            slot = self._slots.setdefault(model.blob_digest, Slot(self._config.keep_alive))
            slot.asked = max(slot.asked, context or 0)
            if worker is not None:
                if wanted <= worker.context:
                    return worker
                log.info("%s is loaded anew for a context of %d instead of %d", model.name, wanted, worker.context)
                await self._remove(worker)
            return await self._start(model, slot, wanted)

    def _current(self, model: Model) -> Worker | None:
        worker = self._workers.get(model.blob_digest)
        return None if worker is None or worker.leaving else worker

    def _too_small(self, worker: Worker, context: int | None) -> bool:
        """Whether a larger context is asked for than ever before; what was clamped once is not tried again."""
        if context is None or context <= worker.context or not worker.idle:
            return False
        return context > self._slots[worker.model.blob_digest].asked

    def _context(self, shape: Shape, asked: int | None) -> int:
        wanted = max(asked or 0, self._config.context)
        return min(-(-wanted // CONTEXT_BUCKET) * CONTEXT_BUCKET, shape.trained_context)

    async def _start(self, model: Model, slot: Slot, wanted: int) -> Worker:
        now = asyncio.get_running_loop().time()
        if now < slot.rests_until:
            raise Unstable(
                f"`{model.name}` crashed {CRASHES_IN_A_ROW} times in a row and rests",
                "see `lm logs`; a smaller level or context may help",
                retry_after=slot.rests_until - now,
            )
        hardware, context, need = await self._make_room(model, wanted)
        load = Load(
            path=str(model.blob),
            context=context,
            sequences=self._config.sequences,
            threads=hardware.cpus,
            queue=self._bound,
            engine=self._engine.name,
            kv_type=KV_TYPE,
            gap=self._config.gap,
            gpu_layers=need.card_layers,
            spill=self._spare(hardware, need),
            script=self._engine.script,
        )
        slot.keep_alive = self._config.keep_alive
        worker = await Worker.start(model, load, memory=need.total, log_file=log_file(self._config.logs, "worker"))
        self._workers[model.blob_digest] = worker
        self._needs[model.blob_digest] = need
        worker.ready.add_done_callback(lambda _: self._released.set())
        worker.reader.add_done_callback(lambda _: self._forget(worker, slot))
        return worker

    def _forget(self, worker: Worker, slot: Slot) -> None:
        """A worker has ended; several crashes without a word between them give the model a rest."""
        if self._workers.get(worker.model.blob_digest) is worker:
            del self._workers[worker.model.blob_digest]
        if worker.crashed:
            slot.crashes = 1 if worker.answered else slot.crashes + 1
        if slot.crashes >= CRASHES_IN_A_ROW:
            slot.crashes = 0
            slot.rests_until = asyncio.get_running_loop().time() + REST_SECONDS
        self._released.set()
        self._background(self._library.released(worker.model.blob_digest, self.holds()))

    async def _make_room(self, model: Model, wanted: int) -> tuple[Hardware, int, Need]:
        """The machine, the context to load with and what that needs, once so much memory and a place are free.

        Busy models are waited for, pinned ones (kept for ever) stay, the idle one that was used longest ago goes first.
        """
        while True:
            hardware = await asyncio.to_thread(self._hardware)
            others = [worker for worker in self._workers.values() if not worker.dead]
            movable = [worker for worker in others if not self._pinned(worker)]
            free = hardware.memory_available - sum(worker.memory for worker in others if worker.loading)
            ours = sum(worker.memory for worker in movable if not worker.loading)
            context, need = await self._fit(model, wanted, free + ours, hardware)
            if need.total <= free and len(others) < self._config.max_models:
                return hardware, context, need
            if idle := sorted((worker for worker in movable if worker.idle), key=lambda worker: worker.last_used):
                log.info("%s makes room for %s", idle[0].model.name, model.name)
                await self._remove(idle[0])
                continue
            if not movable and not any(worker.loading for worker in others):
                names = ", ".join(f"`{worker.model.name}`" for worker in others)
                raise DoesNotFit(f"`{model.name}` has no place beside {names}, to be kept for ever", "`lm stop` one")
            self._released.clear()
            await self._released.wait()

    def _spare(self, hardware: Hardware, need: Need) -> int:
        """What a worker may hold of conversations that left its pool, of checkpoints, and of a prompt that it reads
        beside answers: some, if that is free."""
        loading = sum(worker.memory for worker in self._workers.values() if worker.loading and not worker.dead)
        return max(0, min(max(need.cache, SPARE), (hardware.memory_available - loading - need.total) // 2))

    def _pinned(self, worker: Worker) -> bool:
        return self._slots[worker.model.blob_digest].keep_alive < 0

    async def _fit(self, model: Model, wanted: int, room: int, hardware: Hardware) -> tuple[int, Need]:
        facts, context = await self._library.facts(model), wanted
        while True:
            need = await self._estimator.need(
                model.blob_digest, facts, model.size, context, self._config.sequences, KV_TYPE, hardware.cards
            )
            if need.total <= room:
                return context, need
            if context <= SMALLEST_CONTEXT:
                level = smaller(facts, need, room)
                raise DoesNotFit(
                    f"`{model.name}` needs {size(need.total)} with a context of {context} tokens, "
                    f"and {size(max(room, 0))} are free",
                    f"{level} of it would fit: pull it with `--level {level}`" if level else "close other programs",
                )
            context = max(context // 2, min(SMALLEST_CONTEXT, wanted))

    async def _remove(self, worker: Worker) -> None:
        await worker.stop()
        slot = self._slots.get(worker.model.blob_digest)
        if slot is not None and slot.timer is not None:
            slot.timer.cancel()

    async def _watch_workers(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            for worker in self._workers.values():
                if not worker.dead and (why := worker.overdue()):
                    worker.kill(why)
