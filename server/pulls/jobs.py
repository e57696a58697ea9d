"""Pulls that are under way: one job for each model and level, followed by any number of clients.

A job's work is done by a child (`server/pulls/puller.py`) that writes into the store's ingest folder; only the daemon
commits. When the last follower leaves, the job is paused, unless one of them wished it to go on: the child dies, and
what it made stays as far as its journal vouches for it, until the next pull of the same name goes on with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

from registry.names import AUTO, Name, Reference, parse
from registry.store import manifest
from registry.store.catalog import Model
from registry.store.layers import Staged
from registry.store.store import Ingest, Store
from runtime.messages import CacheConfig
from server.children.child_log import log_file
from server.children.daemon_side import task_process
from server.config import Config
from server.errors import Stopping
from server.http.problems import Problem
from server.library import Library
from server.pulls.frames import Done, FromPuller, Note, Planned, Task
from server.pulls.progress import failed, listed, tagged, told

log = logging.getLogger("lm.jobs")
NICE = 10
# After these errors nobody can go on with what was made.
_HOPELESS = frozenset({"bad_values"})


@dataclass(frozen=True)
class Access:
    """A hub, and the token for it, which is kept in memory only."""

    endpoint: str
    token: str = field(repr=False)


@dataclass(frozen=True)
class Order:
    """How a model is to be pulled: from which hub, at which rate (bytes/s, 0 for any), `pre` is the pre-tokenizer's
    name where the user gave it."""

    access: Access
    limit_rate: float = 0.0
    pre: str = ""


class Job:
    """One pull. `frames` is its story so far, one entry for each phase, the last one kept up to date.

    With `detached` it goes on when nobody follows; `unwanted` is set when what it made is not to be kept.
    """

    def __init__(self, reference: Reference, order: Order) -> None:
        self.reference = reference
        self.order = order
        self.frames: list[dict[str, Any]] = []
        self.followers = 0
        self.detached = False
        self.unwanted = False
        self.ended = False
        self.task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    def tell(self, frame: dict[str, Any]) -> None:
        """Add to the story; progress within a phase replaces the phase's entry."""
        if self.frames and "completed" in frame and self.frames[-1].get("phase") == frame["phase"]:
            self.frames[-1] = frame
        else:
            self.frames.append(frame)
        self._wake()

    def end(self) -> None:
        """No more frames will come."""
        self.ended = True
        self._wake()

    @property
    def leaving(self) -> bool:
        """Whether it has ended or is on its way to that."""
        return self.ended or self.task is None or bool(self.task.cancelling())

    def leave(self) -> None:
        """End it before it is done."""
        if not self.leaving and self.task:
            self.task.cancel()

    async def story(self) -> AsyncGenerator[dict[str, Any]]:
        """Every frame from the first on, then each change as it happens, until the job ends."""
        told = -1
        last: dict[str, Any] | None = None
        while True:
            changed = self._changed
            if told >= 0 and self.frames[told] is not last:
                last = self.frames[told]
                yield last
            while told + 1 < len(self.frames):
                told += 1
                last = self.frames[told]
                yield last
            if self.ended and told + 1 == len(self.frames):
                return
            await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Jobs:
    """All pulls of the daemon."""

    def __init__(self, config: Config, library: Library, in_use: Callable[[], set[str]]) -> None:
        """`in_use` gives the digests of blobs that must stay although no model may list them any more."""
        self._config = config
        self._library = library
        self._in_use = in_use
        self._jobs: dict[str, Job] = {}
        self._stopping = False

    async def follow(
        self, reference: Reference, order: Order, *, detach: bool = False
    ) -> AsyncGenerator[dict[str, Any]]:
        """The frames of the pull of `reference`, started unless it is under way; the last one is success or error.

        With `detach` it goes on to its end, whoever leaves. The order of a pull that is under way stays. Where it was
        begun under another name, with a level or without one, that one goes on.
        """
        if self._stopping:
            raise Stopping("the daemon is stopping", "start it again")
        reference, begun = await asyncio.to_thread(self._begun, reference, set(self._jobs)), reference
        if reference.text != begun.text:
            anew = "" if begun.level else f"; `{begun.text}:{AUTO}` chooses anew"
            yield told(Note(f"going on with `{reference.text}`, which was paused{anew}"))
        job = self._jobs.get(reference.text)
        if job is None or job.leaving:
            before = job.task if job else None
            job = self._jobs[reference.text] = Job(reference, order)
            job.task = asyncio.create_task(self._run(job, before))
        left = job.detached and not detach
        job.detached |= detach
        job.followers += 1
        try:
            if left:
                text = reference.text
                yield told(
                    Note(f"the daemon brings this in whether or not anybody looks on; `lm stop {text}` pauses it")
                )
            async for frame in job.story():
                yield frame
        finally:
            job.followers -= 1
            if not job.followers and not job.detached:
                job.leave()

    async def partials(self) -> list[dict[str, Any]]:
        """What is on its way or paused, as `/lm/partials` lists it; sizes in bytes."""
        ingests = await asyncio.to_thread(self._library.store.partials)
        return [listed(ingest, ingest.title in self._jobs) for ingest in ingests]

    async def remove(self, reference: Reference, installed: bool) -> str:
        """End the pulls that `reference` means, and throw away what they made; the name of one, "" without any.

        A bare name means all variants, unless a model of that name is `installed`.
        """
        store = self._library.store
        doomed = [job for job in self._jobs.values() if _means(reference, job.reference, "", installed)]
        for job in doomed:
            job.unwanted = True
            job.leave()
        await asyncio.gather(*(job.task for job in doomed if job.task), return_exceptions=True)
        left = [
            ingest
            for ingest in await asyncio.to_thread(store.partials)
            if ingest.journal and _means(reference, parse(ingest.title), ingest.journal.facts.level, installed)
        ]
        for ingest in left:
            await asyncio.to_thread(store.abandon, ingest)
        return next((name for name in (*(job.reference.text for job in doomed), *(one.title for one in left))), "")

    async def pause(self, reference: Reference, installed: bool) -> str:
        """Pause the pulls under way that `reference` means, as in `remove`; the name of one, "" without any."""
        found = [
            job for job in self._jobs.values() if not job.leaving and _means(reference, job.reference, "", installed)
        ]
        for job in found:
            job.leave()
        await asyncio.gather(*(job.task for job in found if job.task), return_exceptions=True)
        return next((job.reference.text for job in found), "")

    async def stop(self) -> None:
        """Cancel every job and wait until nothing of them is left."""
        self._stopping = True
        jobs = list(self._jobs.values())
        for job in jobs:
            job.leave()
        await asyncio.gather(*(job.task for job in jobs if job.task), return_exceptions=True)

    def _begun(self, wanted: Reference, under_way: set[str]) -> Reference:
        """The only paused pull that `wanted` may mean, `wanted` itself where there is none or it was begun so."""
        store = self._library.store
        paused = {ingest.title: ingest.journal for ingest in store.partials() if ingest.title not in under_way}
        if wanted.text in paused or wanted.text in under_way or wanted.level == AUTO:
            return wanted
        installed = bool(store.variants(wanted.name))
        found = [
            pulled
            for pulled, journal in ((parse(title), journal) for title, journal in paused.items())
            if journal and pulled.location == wanted.location and _means(wanted, pulled, journal.facts.level, installed)
        ]
        return found[0] if len(found) == 1 else wanted

    def _forget(self, job: Job) -> None:
        if self._jobs.get(job.reference.text) is job:
            del self._jobs[job.reference.text]

    async def _run(self, job: Job, before: asyncio.Task[None] | None) -> None:
        try:
            if before is not None:
                await asyncio.wait([before])  # it still holds the place that this one needs
            model = await self._pull(job)
            job.tell({"status": "success", "phase": "done", "name": model.name, "digest": model.digest})
        except asyncio.CancelledError:
            log.info("pull of %s was %s", job.reference.text, "removed" if job.unwanted else "paused")
            job.tell(failed(_ending(job)))
        except Exception as error:
            if Problem.of(error).code == "internal":
                log.exception("pull of %s failed", job.reference.text)
            else:
                log.info("pull of %s failed: %s", job.reference.text, error)
            job.tell(failed(error))
        finally:
            self._forget(job)
            job.end()

    async def _pull(self, job: Job) -> Model:
        job.tell({"status": "pulling manifest", "phase": "resolving"})
        ingest = await self._begin(job)
        try:
            done = await self._work(job, ingest)
            if isinstance(done, Model):
                await asyncio.shield(asyncio.to_thread(self._library.store.abandon, ingest))
                return done
        except BaseException as error:
            store = self._library.store
            hopeless = job.unwanted or getattr(error, "code", "") in _HOPELESS
            await asyncio.shield(asyncio.to_thread(store.abandon if hopeless else store.pause, ingest))
            raise
        job.tell({"status": "writing manifest", "phase": "committing"})
        name = job.reference.name.tagged(done.tag)
        commit = asyncio.create_task(asyncio.to_thread(self._commit, ingest, done, name, self._in_use()))
        try:
            return await asyncio.shield(commit)
        except asyncio.CancelledError:
            await asyncio.wait([commit])  # what has begun is finished, whoever leaves
            raise

    async def _begin(self, job: Job) -> Ingest:
        store = self._library.store
        begun = asyncio.create_task(asyncio.to_thread(store.begin, job.reference.text))
        try:
            return await asyncio.shield(begun)
        except asyncio.CancelledError:
            await asyncio.to_thread(store.pause, await begun)
            raise

    def _commit(self, ingest: Ingest, done: Done, name: Name, in_use: set[str]) -> Model:
        store = self._library.store
        layers = [Staged.file(ingest.data, manifest.MODEL, done.sha256, done.size)]
        layers += [Staged.json(done.params, manifest.PARAMS)] if done.params else []
        model = store.commit(ingest, layers, name, done.config)
        store.collect(in_use)  # what the model of this name was made of before
        return model

    def _same(self, name: Name, planned: Planned) -> Model | None:
        """The model of that name if it is just what the pull would make; the bare name means it from now on."""
        store = self._library.store
        for model in store.variants(name):
            if model.key.same(name) and not model.problem and model.own.get("made_of") == planned.made_of:
                store.choose(model)
                return model
        return None

    async def _work(self, job: Job, ingest: Ingest) -> Done | Model:
        """Let a child write the model's file, unless the same is here; raises as `TaskProcess.receive`."""
        process = task_process(
            "server.pulls.puller",
            await self._task(job, ingest),
            frames=FromPuller,
            log=log_file(self._config.logs, "puller"),
            purpose=f"pulled `{job.reference.text}`",
            nice=NICE,
        )
        async with process as puller:
            while True:
                match await puller.receive():
                    case Done() as done:
                        return done
                    case Planned() as planned:
                        job.tell(told(planned))
                        name = tagged(job.reference, planned.level)
                        if same := await asyncio.to_thread(self._same, name, planned):
                            job.tell(told(Note("nothing has changed since it was brought in")))
                            return same
                    case frame:
                        job.tell(told(frame))

    async def _task(self, job: Job, ingest: Ingest) -> Task:
        config = self._config
        return Task(
            source=job.reference.text,
            folder=str(ingest.folder),
            cache=str(config.cache),
            endpoint=job.order.access.endpoint,
            token=job.order.access.token,
            proxy=config.proxy,
            no_proxy=",".join(config.no_proxy),
            limit_rate=job.order.limit_rate,
            disk_free=await asyncio.to_thread(_room, self._library.store, ingest),
            cache_config=CacheConfig(config.context, config.sequences),
            pre=job.order.pre or await asyncio.to_thread(_pre, self._library.store, job.reference, ingest),
        )


def _pre(store: Store, reference: Reference, ingest: Ingest) -> str:
    """The pre-tokenizer that the user named when this was begun, or for another variant; empty for none."""
    if ingest.journal and ingest.journal.facts.pre:
        return ingest.journal.facts.pre
    named = [str(model.own.get("pre", "")) for model in store.variants(reference.name)]
    return next(filter(None, named), "")


def _ending(job: Job) -> Stopping:
    text = job.reference.text
    if job.unwanted:
        return Stopping(f"the pull of `{text}` was ended because the model was removed", f"lm pull {text}")
    return Stopping(f"the pull of `{text}` is paused", f"`lm pull {text}` goes on with it")


def _room(store: Store, ingest: Ingest) -> int:
    """Bytes that the disk has for a pull: what is free, and what its own partial has taken already."""
    return store.free_bytes() + (ingest.journal.latest.size if ingest.journal else 0)


def _means(wanted: Reference, pulled: Reference, level: str, installed: bool) -> bool:
    """Whether a name that a user typed means this pull, of a level that may be known only to its journal."""
    name = tagged(pulled, level)
    if wanted.text == pulled.text or wanted.name.display.lower() == name.display.lower():
        return True
    bare = wanted.name.display.lower() == pulled.name.tagged(None).display.lower()
    return bare and wanted.name.tag is None and not installed
