"""Room for one more model: which memory it gets, and which other model has to go for it.

A load needs what `runtime/machine/fit.py` predicts. The memory that is free, plus the memory that our own workers would
give back, must hold it. The idle worker that was used longest ago goes first; busy ones are waited for, pinned ones
stay. A context that does not fit is halved until it does; a model that does not fit even then is refused with both
numbers. Whoever calls `place` lets one load in at a time, so that two never count the same bytes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import msgspec

from registry.store.catalog import Model
from runtime.errors import DoesNotFit
from runtime.machine.fit import ModelSize, Need
from runtime.machine.hardware import Hardware
from runtime.machine.inspection import NO_DRAFTS, DraftMeans
from runtime.messages import CacheConfig
from runtime.units import size_text
from server.config import Config
from server.library import Library
from server.loaded.estimate import Estimator, smaller
from server.loaded.slot import Slot
from server.loaded.worker import Worker

log = logging.getLogger("lm.pool")
# No context is halved to fewer tokens than this.
SMALLEST_CONTEXT = 512
# A context is rounded up to a multiple of this, in tokens.
CONTEXT_BUCKET = 1024
# A worker's copies of conversations may take this many bytes, or as many as its KV cache where that is more.
SPILL_BYTES = 256 << 20


async def _no_others() -> bool:
    return False


@dataclass(frozen=True)
class Placement:
    """How a model is to be loaded: the context in tokens, the number of threads, the predicted need, and the bytes that
    the worker may use for copies of conversations outside its KV cache.

    `drafts` is what it drafts by; `missing` says why its own heads are left out, "" where they are not.
    """

    context: int
    threads: int
    need: Need
    spill: int
    drafts: DraftMeans = NO_DRAFTS
    missing: str = ""


class Admission:
    """Finds room for models. `slots` are the pool's own, by digest; `hardware` measures the machine at each call."""

    def __init__(
        self,
        config: Config,
        library: Library,
        estimator: Estimator,
        hardware: Callable[[], Hardware],
        slots: Mapping[str, Slot],
    ) -> None:
        self._config = config
        self._library = library
        self._estimator = estimator
        self._hardware = hardware
        self._slots = slots
        self._changed = asyncio.Event()
        self.end_others: Callable[[], Awaitable[bool]] = _no_others
        """Ends work beside the models that takes memory; whether there was any."""

    def notify(self) -> None:
        """Say that a worker became ready or idle, or ended: whoever waits for room looks again."""
        self._changed.set()

    async def wait_for_change(self) -> None:
        """Wait until `notify` is called."""
        self._changed.clear()
        await self._changed.wait()

    async def context(self, model: Model, tokens: int | None) -> int:
        """The context to load a model with when a request wants one of `tokens`, if there is memory for it.

        More than the setting is rounded up, so that slightly longer requests do not load the model anew.
        """
        size = await self._library.model_size(model)
        usual = size.cap_context(CacheConfig.wanted(self._config.context, self._config.sequences)).context
        wanted = max(tokens or 0, usual)
        most = size.short_context if wanted <= size.short_context else size.trained_context
        if wanted > usual:
            wanted = -(-wanted // CONTEXT_BUCKET) * CONTEXT_BUCKET
        return min(wanted, most, size.trained_context)

    async def place(self, model: Model, wanted: CacheConfig, beside: int = 0, draft: Model | None = None) -> Placement:
        """Make room for a model with the KV cache `wanted`, or with as much of it as fits, and `beside` bytes.

        A `draft` model in the same process needs room too.

        Raises DoesNotFit when it has no room beside pinned models, or not even alone.
        """
        said = False
        while True:
            hardware = await asyncio.to_thread(self._hardware)
            slots = [(slot, slot.process) for slot in self._slots.values()]
            others = [(slot, worker) for slot, worker in slots if worker is not None]
            movable = [(slot, worker) for slot, worker in others if not slot.pinned]
            free = hardware.memory_available - beside - _loading([worker for _, worker in others])
            ours = sum(worker.need.total for _, worker in movable if not worker.loading)
            try:
                context, need, means, missing = await self._fit(model, wanted, free + ours, hardware, draft)
            except DoesNotFit:
                if await self.end_others():
                    continue
                raise
            if (need.total > free or context < wanted.context) and await self.end_others():
                continue
            if need.total <= free and len(others) < self._config.max_models:
                return Placement(context, hardware.cpus, need, beside + _spill(free, need), means, missing)
            if idle := [(slot, worker) for slot, worker in movable if worker.idle]:
                slot, worker = min(idle, key=lambda pair: pair[1].last_used)
                log.info("%s makes room for %s", worker.model.name, model.name)
                await slot.unload(worker)
                continue
            if not movable and not any(worker.loading for _, worker in others):
                names = ", ".join(f"`{worker.model.name}`" for _, worker in others)
                message = f"`{model.name}` does not fit beside {names}, loaded for ever"
                raise DoesNotFit(message, "unload one with `lm stop NAME`")
            if not said:
                log.info(
                    "%s waits for room beside %s", model.name, ", ".join(worker.model.name for _, worker in others)
                )
                said = True
            await self.wait_for_change()

    async def _fit(
        self, model: Model, wanted: CacheConfig, room: int, hardware: Hardware, draft: Model | None
    ) -> tuple[int, Need, DraftMeans, str]:
        """The largest context up to `wanted`, by halving, with which the model fits into `room` bytes, and its need.

        Its own heads are left out before the context is halved. `drafts` and `missing` of `Placement` follow.
        """
        facts, context = await self._library.facts(model), wanted.context
        size = model.size - (model.draft.size if model.draft else 0)  # `draft` counts it
        means, missing = self._means(facts.model_size, draft), ""
        while True:
            cache_config = msgspec.structs.replace(wanted, context=context)
            need = await self._estimator.need(model.blob_digest, facts, size, cache_config, hardware.cards, means)
            if draft:
                need = need.with_draft(await self._draft_need(draft, cache_config))
            if need.total <= room:
                return context, need, means, missing
            if means.heads:
                missing = f"with them it needs {size_text(need.total)}, and {size_text(max(room, 0))} are free"
                means = NO_DRAFTS
                continue
            if context <= SMALLEST_CONTEXT:
                level = smaller(facts.plan, need, room)
                if draft:
                    raise DoesNotFit(
                        f"`{model.name}` with its draft `{draft.name}` needs {size_text(need.total)}, "
                        f"and {size_text(max(room, 0))} are free",
                        "ask without the draft, or close other programs",
                    )
                raise DoesNotFit(
                    f"`{model.name}` needs {size_text(need.total)} with a context of {context} tokens, "
                    f"and {size_text(max(room, 0))} are free",
                    f"{level} of it would fit: pull it with `--level {level}`" if level else "close other programs",
                )
            context = max(context // 2, min(SMALLEST_CONTEXT, wanted.context))

    def _means(self, size: ModelSize, draft: Model | None) -> DraftMeans:
        """The means by which a model of this size drafts: a draft model goes before its own heads."""
        if not self._config.speculation or not (draft or size.has_heads):
            return NO_DRAFTS
        return DraftMeans(heads=draft is None, rollback=size.rollback)

    async def _draft_need(self, draft: Model, cache_config: CacheConfig) -> Need:
        """The memory of a draft model beside a large one with this cache."""
        facts = await self._library.facts(draft)
        capped = facts.model_size.cap_context(cache_config)
        return await self._estimator.need(draft.blob_digest, facts, draft.size, capped)


def _loading(workers: list[Worker]) -> int:
    """Bytes that will be taken by workers which are still loading; the system counts them as free."""
    return sum(worker.need.total for worker in workers if worker.loading)


def _spill(free: int, need: Need) -> int:
    """Bytes that a worker may use for conversations that left its cache, checkpoints, and a prompt read beside answers.

    At most half of the memory that stays free once the model is loaded: the other half is for the next model.
    """
    return max(0, min(max(need.cache, SPILL_BYTES), (free - need.total) // 2))
