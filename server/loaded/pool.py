"""Which models are loaded: one worker each, started on demand, unloaded when nobody asks any more or room is needed.

Room for a load is found by `server/loaded/admission.py`. Loads are admitted one at a time, so that two never count the
same bytes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from registry.errors import ModelNotFound, RegistryError
from registry.store.catalog import Model
from runtime.errors import EngineError, QueueFull
from runtime.machine.hardware import Hardware
from runtime.messages import CacheConfig, Load
from server.children.child_log import log_file
from server.config import Config
from server.errors import ChildError, Stopping, Unstable
from server.library import Library
from server.loaded.admission import Admission
from server.loaded.cache_types import CacheChoice, Drafter, choose_cache_type
from server.loaded.estimate import Estimator, anonymous_bytes
from server.loaded.slot import CRASHES_IN_A_ROW, Slot
from server.loaded.tally import Tally
from server.loaded.wish import USUAL, LoadWish
from server.loaded.worker import STOPPING, Speed, Worker

log = logging.getLogger("lm.pool")
WATCH_SECONDS = 1.0


@dataclass(frozen=True)
class Runtime:
    """The engine that workers run: `llama`, or `fake` with a script."""

    name: str = "llama"
    script: dict[str, Any] = field(default_factory=dict)


def _nobody(model: Model, context: int) -> None:
    """Whoever wants to know sets another function."""


def _unheard() -> None:
    """Whoever wants to know sets another function."""


class Pool:
    """The loaded models. `hardware` measures the machine anew at each call."""

    def __init__(self, config: Config, library: Library, hardware: Callable[[], Hardware], runtime: Runtime) -> None:
        self._config = config
        self._library = library
        self._runtime = runtime
        # Requests in the queue and in the engine: a burst arrives before the worker has moved any of it to the engine.
        self._bound = config.queue + config.sequences
        self._slots: dict[str, Slot] = {}  # by digest of the model's blob
        self._estimator = Estimator(config.cache, ask=runtime.name == "llama")
        self._admission = Admission(config, library, self._estimator, hardware, self._slots)
        self._one_load_at_a_time = asyncio.Lock()
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._tallies: dict[str, Tally] = {}  # by the model's name
        self.observe: Callable[[Model, int], None] = _nobody
        """Called with a model and its context in tokens when a worker for it has been started."""
        self.asked: Callable[[], None] = _unheard
        """Called when a request comes or ends; `pending` has how many there are."""
        self._watch = asyncio.create_task(self._watch_workers())

    @asynccontextmanager
    async def use(self, model: Model, wish: LoadWish = USUAL) -> AsyncIterator[Worker]:
        """A worker that holds `model`, loaded if need be, with the context of `wish` if there is memory for it.

        An idle worker with another draft or another type of the KV cache is exchanged; a busy one answers as it is.

        Raises QueueFull, DoesNotFit, Unstable, Stopping, and what loading raises.
        """
        if self._stopping:
            raise Stopping("the daemon is stopping", "start it again")
        slot = self._slots.setdefault(model.blob_digest, Slot(self._config.keep_alive))
        if slot.pending >= self._bound:
            raise QueueFull(f"{slot.pending} requests wait for `{model.name}` already", "try again in a moment")
        slot.pending += 1
        self.asked()
        try:
            worker = await self._find(slot, model, wish)
            if wish.keep_alive is not None:
                slot.keep_alive = wish.keep_alive
            slot.stop_clock()
            try:
                with worker.used():
                    await asyncio.shield(worker.ready)
                    yield worker
            finally:
                self._left(slot, worker)
        except (ChildError, EngineError, RegistryError):
            if not await asyncio.to_thread(model.blob.exists):
                message = f"`{model.name}` was removed or replaced while this request waited for it"
                raise ModelNotFound(message, "ask again, or see `lm list`") from None
            raise
        finally:
            slot.pending -= 1
            self.asked()
            self._collect(slot, model.blob_digest)

    def loaded(self) -> list[tuple[Worker, float | None]]:
        """The workers that are ready, each with the seconds it stays if nobody asks (None: for ever), longest first."""
        now = asyncio.get_running_loop().time()
        usable = [(slot.usable, slot.seconds_left(now)) for slot in self._slots.values()]
        rows = [(worker, stays) for worker, stays in usable if worker is not None and not worker.loading]
        return sorted(rows, key=lambda row: -(row[1] if row[1] is not None else float("inf")))

    def open_blobs(self) -> set[str]:
        """Digests of the blobs that workers have open, or that requests wait for."""
        drafts = {worker.draft.blob_digest for worker in self.processes() if worker.draft}
        return drafts | {digest for digest, slot in self._slots.items() if slot.holds}

    def give_way_first(self, end: Callable[[], Awaitable[bool]]) -> None:
        """Call `end` where a load lacks memory: it ends other work, and says whether that freed any."""
        self._admission.end_others = end

    async def retire(self) -> None:
        """Unload the models that the store no longer has: now where they are idle, else after their last request.

        Call after a model was removed or replaced. Does nothing while a manifest cannot be read, for nobody knows which
        model it lists.
        """
        models = await self._library.models()
        if any(not model.blob_digest for model in models):
            return
        listed = {model.blob_digest for model in models}
        names = {model.name for model in models} | {model.name for model in self.models()}
        self._tallies = {name: tally for name, tally in self._tallies.items() if name in names}
        for digest, slot in list(self._slots.items()):
            slot.retired = digest not in listed
            worker = slot.usable
            if slot.retired and worker is not None and worker.idle:
                await slot.unload(worker)

    @property
    def pending(self) -> int:
        """Requests that wait for a model or are being answered by one."""
        return sum(slot.pending for slot in self._slots.values())

    def tallies(self) -> list[Tally]:
        """The counters of each model that was loaded since the daemon started."""
        return list(self._tallies.values())

    def models(self) -> list[Model]:
        """The models whose worker runs or is being started."""
        return [worker.model for worker in self.processes()]

    async def unload(self, model: Model) -> Literal["stopped", "stopping", "not loaded"]:
        """Unload now if idle ("stopped"), else as soon as the last request ends ("stopping")."""
        slot = self._slots.get(model.blob_digest)
        if slot is None or (worker := slot.usable) is None:
            return "not loaded"
        slot.keep_alive = 0.0
        if worker.users:
            return "stopping"
        await slot.unload(worker)
        return "stopped"

    async def drain(self, seconds: float) -> None:
        """Let running answers end for at most `seconds`, then end every worker. Nothing is admitted any more."""
        self._stopping = True
        deadline = asyncio.get_running_loop().time() + seconds
        while any(worker.users for worker in self.processes()):
            try:
                async with asyncio.timeout_at(deadline):
                    await self._admission.wait_for_change()
            except TimeoutError:
                break
        self._watch.cancel()
        await asyncio.gather(*(worker.stop(STOPPING) for worker in self.processes()))

    def rows(self) -> list[tuple[Slot, float | None]]:
        """The models whose process has not ended, each with the seconds it stays if nobody asks (None: for ever)."""
        now = asyncio.get_running_loop().time()
        return [(slot, slot.seconds_left(now)) for slot in self._slots.values() if slot.process]

    def processes(self) -> list[Worker]:
        """The workers whose process has not ended."""
        return [worker for slot in self._slots.values() if (worker := slot.process)]

    def _left(self, slot: Slot, worker: Worker) -> None:
        """A user has left `worker`: learn from it, and start the clock when it was the last one."""
        if worker.answered:
            slot.crashes = 0
        self._admission.notify()
        self._learn(worker)
        if not worker.users and not slot.pinned and slot.worker is worker:
            expires = worker.last_used + slot.stay
            slot.start_clock(asyncio.get_running_loop().call_at(expires, self._expire, slot, worker))

    def _learn(self, worker: Worker) -> None:
        """Correct predictions of memory by an idle worker, predictions of speed by an answer that ran alone."""
        speed = worker.take_speed()
        if self._runtime.name != "llama" or worker.draft:  # a draft model's share of either is not known
            return
        measured = None if worker.users or not worker.answered or worker.dead else anonymous_bytes(worker.pid)
        if measured is not None:
            self._estimator.learn(worker.model.blob_digest, worker.model.name, worker.need, measured - worker.spilled)
        alone = not any(other.users for other in self.processes())
        if speed is not None and alone and not worker.need.card_layers:
            self._background(self._learn_speed(worker, speed))

    async def _learn_speed(self, worker: Worker, speed: Speed) -> None:
        facts, name = await self._library.facts(worker.model), worker.model.name
        await asyncio.to_thread(self._estimator.learn_speed, name, facts, worker.threads, speed.context, speed.seconds)

    def _expire(self, slot: Slot, worker: Worker) -> None:
        if not worker.users:
            self._background(slot.unload(worker))

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _find(self, slot: Slot, model: Model, wish: LoadWish) -> Worker:
        """The model's worker, started or exchanged for another one where that is needed and possible."""
        if (worker := slot.usable) and slot.suits(worker, wish) and not worker.lacks(wish.draft):
            return worker
        async with self._one_load_at_a_time:
            worker = slot.usable  # somebody else may have started it while we waited
            if worker and slot.suits(worker, wish) and not worker.lacks(wish.draft):
                return worker
            wanted = await self._admission.context(model, wish.context)
            slot.largest_context = max(slot.largest_context, wish.context or 0)
            kv_type, reason = await self._cache_type(model, wish, worker)
            if worker is not None:
                if worker.lacks(wish.draft):
                    log.info("%s is loaded anew with the draft %s", model.name, wish.draft and wish.draft.name)
                elif kv_type != worker.kv_type:
                    log.info("%s is loaded anew with a KV cache in %s", model.name, kv_type)
                elif wanted <= worker.context:
                    return worker
                else:
                    log.info("%s is loaded anew for a context of %d instead of %d", model.name, wanted, worker.context)
                wanted, wish = max(wanted, worker.context), replace(wish, draft=wish.draft or worker.draft)
                await slot.unload(worker)
            started = await self._start(slot, model, self._cache(wanted, kv_type), wish)
            started.kv_reason = reason
            return started

    def _cache(self, context: int, kv_type: str) -> CacheConfig:
        return CacheConfig(context, self._config.sequences, kv_type)

    async def _cache_type(self, model: Model, wish: LoadWish, worker: Worker | None) -> CacheChoice:
        """The type of the KV cache for a worker in the place of `worker`, whose type stays unless another is wanted.

        A draft beside it has a cache of the same type.
        """
        usual, draft = self._config.kv_type, wish.draft
        if worker is not None and wish.kv_type is None:
            if not worker.lacks(draft):
                return CacheChoice(worker.kv_type, worker.kv_reason)
            usual = worker.kv_type
        metadata = (await self._library.facts(model)).plan.metadata
        drafter = Drafter(draft.name, (await self._library.facts(draft)).plan.metadata) if draft else None
        return choose_cache_type(model, metadata, wish.kv_type, usual, drafter)

    async def _start(self, slot: Slot, model: Model, wanted: CacheConfig, wish: LoadWish) -> Worker:
        now = asyncio.get_running_loop().time()
        if now < slot.rests_until:
            raise Unstable(
                f"`{model.name}` crashed {CRASHES_IN_A_ROW} times in a row and rests",
                "see `lm logs`; a smaller level or context may help",
                retry_after=slot.rests_until - now,
            )
        for each in (model, wish.draft):
            if each is not None:
                await self._library.check_policy(each)
        placement = await self._admission.place(model, wanted, wish.beside, wish.draft)
        model_size = await self._library.model_size(model)
        if placement.missing:
            log.info("%s drafts not through its own heads: %s", model.name, placement.missing)
        if reason := model_size.context_reason(placement.context):
            log.info("%s gets a context of %d: %s", model.name, placement.context, reason)
        load = Load(
            path=str(model.blob),
            cache_config=self._cache(placement.context, wanted.kv_type),
            threads=placement.threads,
            queue=self._bound,
            engine=self._runtime.name,
            gap=self._config.gap,
            speculation=self._config.speculation,
            gpu_layers=placement.need.card_layers,
            spill=placement.spill,
            short_context=model_size.short_context,
            draft=(str(wish.draft.blob), wish.draft.name) if wish.draft else ("", ""),
            sandbox=self._config.sandbox,
            heads=placement.drafts.heads,
            rollback=placement.drafts.rollback,
            missing=placement.missing,
            script=self._runtime.script,
        )
        slot.keep_alive = self._config.keep_alive
        started = Worker.start(
            model,
            load,
            need=placement.need,
            log_file=log_file(self._config.logs, "worker"),
            tally=self._tallies.setdefault(model.name, Tally(model)),
            draft=wish.draft,
        )
        slot.worker = worker = await started
        self.observe(model, placement.context)
        worker.ready.add_done_callback(lambda _: self._admission.notify())
        worker.reader.add_done_callback(lambda _: self._ended(slot, worker))
        return worker

    def _ended(self, slot: Slot, worker: Worker) -> None:
        slot.ended(worker, asyncio.get_running_loop().time())
        self._admission.notify()
        self._collect(slot, worker.model.blob_digest)
        if worker.draft:  # it may have been removed while it was in use
            self._background(self._library.collect(self.open_blobs()))

    def _collect(self, slot: Slot, digest: str) -> None:
        """Remove the file of a retired model that nobody holds any more."""
        if slot.retired and not slot.holds and self._slots.get(digest) is slot:
            del self._slots[digest]
            self._background(self._library.collect(self.open_blobs()))

    async def _watch_workers(self) -> None:
        """Kill workers that hang."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            for worker in self.processes():
                if why := worker.overdue():
                    worker.kill(why)
