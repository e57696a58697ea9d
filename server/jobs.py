"""Pulls that are under way: one job for each model and level, followed by any number of clients.

A job's work is done by a child (`server/puller.py`) that writes into the store's ingest folder; only the daemon
commits. When the last follower leaves, the job is cancelled: the child dies and what it wrote is thrown away.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

from registry.names import Name, Reference
from registry.store import Ingest, Model
from runtime.child import Child
from server.config import Config, child_environment
from server.errors import ServerError, Stopping
from server.library import Library
from server.messages import Done, Failure, FromPuller, Planned, Progress, Task
from server.problems import Problem, Reported
from server.worker import log_file, reap

log = logging.getLogger("lm.jobs")
NICE = 10

_STATUS = {
    "resolving": "pulling manifest",
    "planning": "planning",
    "writing": "quantizing",
    "committing": "writing manifest",
}


class Job:
    """One pull. `frames` is its story so far, one entry for each phase, the last one kept up to date."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self.frames: list[dict[str, Any]] = []
        self.followers = 0
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

    async def follow(self, reference: Reference) -> AsyncGenerator[dict[str, Any]]:
        """The frames of the pull of `reference`, started unless it is under way; the last one is success or error."""
        if self._stopping:
            raise Stopping("the daemon is stopping", "start it again")
        job = self._jobs.get(reference.text)
        if job is None:
            job = self._jobs[reference.text] = Job(reference)
            job.task = asyncio.create_task(self._run(job))
        job.followers += 1
        try:
            async for frame in job.story():
                yield frame
        finally:
            job.followers -= 1
            if not job.followers and not job.ended and job.task is not None:
                job.task.cancel()
                # The next pull of this model must not join a job that is being taken down.
                self._forget(job)

    async def stop(self) -> None:
        """Cancel every job and wait until nothing of them is left."""
        self._stopping = True
        tasks = [job.task for job in self._jobs.values() if job.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, job: Job) -> None:
        if self._jobs.get(job.reference.text) is job:
            del self._jobs[job.reference.text]

    async def _run(self, job: Job) -> None:
        try:
            model = await self._pull(job)
            job.tell({"status": "success", "phase": "done", "name": model.name, "digest": model.digest})
        except asyncio.CancelledError:
            log.info("pull of %s was cancelled", job.reference.text)
            job.tell(_error(Stopping("the pull was cancelled", f"lm pull {job.reference.text}")))
        except Exception as error:
            if Problem.of(error).code == "internal":
                log.exception("pull of %s failed", job.reference.text)
            else:
                log.info("pull of %s failed: %s", job.reference.text, error)
            job.tell(_error(error))
        finally:
            self._forget(job)
            job.end()

    async def _pull(self, job: Job) -> Model:
        job.tell({"status": "pulling manifest", "phase": "resolving"})
        ingest = await self._begin(job)
        try:
            done = await self._work(job, ingest)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(self._library.store.abandon, ingest))
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
            await asyncio.to_thread(store.abandon, await begun)
            raise

    def _commit(self, ingest: Ingest, done: Done, name: Name, in_use: set[str]) -> Model:
        store = self._library.store
        model = store.commit(ingest, done.sha256, done.size, name, done.config, done.params)
        store.collect(in_use)  # what the model of this name was made of before
        return model

    async def _work(self, job: Job, ingest: Ingest) -> Done:
        """Let a child write the model's file; raises Reported with the child's own error."""
        output = log_file(self._config.logs, "puller")
        child = await Child.spawn("server.puller", frames=FromPuller, nice=NICE, log=output, env=child_environment())
        try:
            await child.send(await self._task(job, ingest))
            while (frame := await child.receive()) is not None:
                match frame:
                    case Done():
                        return frame
                    case Failure(code=code, message=message, hint=hint):
                        raise Reported(code, message, hint)
                    case Planned() | Progress():
                        job.tell(_told(frame))
            await reap(child)
        finally:
            child.kill()
            await asyncio.shield(child.wait())
        raise ServerError(
            f"the process that pulled `{job.reference.text}` {child.problem or child.ending}",
            "pull again; see `lm logs` if that recurs",
        )

    async def _task(self, job: Job, ingest: Ingest) -> Task:
        config = self._config
        return Task(
            source=job.reference.text,
            out=str(ingest.data),
            cache=str(config.cache),
            endpoint=config.hf_endpoint,
            token=config.hf_token,
            proxy=config.proxy,
            disk_free=await asyncio.to_thread(self._library.store.free_bytes),
            context=config.context,
            sequences=config.sequences,
        )


def _told(frame: Planned | Progress) -> dict[str, Any]:
    if isinstance(frame, Planned):
        return {
            "status": frame.reason,
            "phase": "planned",
            "level": frame.level,
            "reason": frame.reason,
            "source_bytes": frame.source_bytes,
            "output_bytes": frame.output_bytes,
        }
    status = _STATUS.get(frame.phase, frame.phase)
    told: dict[str, Any] = {"status": status, "phase": frame.phase}
    return told | {"completed": frame.completed, "total": frame.total} if frame.total else told


def _error(error: BaseException) -> dict[str, Any]:
    return {"status": "error", "phase": "failed"} | Problem.of(error).body("ollama")
