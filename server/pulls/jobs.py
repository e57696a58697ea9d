"""Pulls that are under way: one job for each model and level, followed by any number of clients.

A job's work is done by a child process (`server/pulls/pull.py` has the daemon's side of it). When the last follower
leaves, the job is paused, unless one of them asked for it to go on. The process is killed, and the part of its work
that the journal vouches for stays: the next pull of the same name goes on with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import msgspec

from registry.errors import Offline, RegistryError
from registry.names import Reference, parse
from registry.store.catalog import Model
from registry.words import AUTO
from server.config import Config
from server.errors import Conflict, Stopping
from server.http.problems import Problem
from server.keys.record import redacted
from server.library import Library
from server.pulls.job import Job, PullOptions, failure
from server.pulls.lines import error_line, name_at_level, note_line, partial_row, success_line
from server.pulls.pull import Pull
from server.pulls.trying import pause_after

log = logging.getLogger("lm.jobs")
# Whether an object of this owner exists for whoever asks.
MayTouch = Callable[[str], bool]


def _everyone(owner: str) -> bool:
    return True


class Jobs:
    """All pulls of the daemon."""

    def __init__(
        self,
        config: Config,
        library: Library,
        in_use: Callable[[], set[str]],
        retire: Callable[[], Awaitable[None]],
        *,
        check: bool = True,
    ) -> None:
        """`in_use` gives the digests of blobs that must stay although no model may list them any more.

        `retire` is called when a model may have been replaced. With `check`, llama.cpp tries what a pull has brought
        in.
        """
        self._config = config
        self._store, self._rules = library.store, library.rules
        self._in_use = in_use
        self._retire = retire
        self._check = check
        self._jobs: dict[str, Job] = {}
        self._stopping = False

    async def follow(
        self, reference: Reference, options: PullOptions, *, detach: bool = False, owner: str = ""
    ) -> AsyncGenerator[dict[str, Any]]:
        """The lines of the pull of `reference`, started unless it is under way; the last one is success or error.

        It belongs to `owner` from now on, beside its earlier owners.

        With `detach` it goes on to its end, whoever leaves. A pull that is under way keeps its own options; asked for
        with an effort, it is refused (Conflict). A pull that was begun under another name, with a level or without one,
        goes on under that name.
        """
        if self._stopping:
            raise Stopping("the daemon is stopping", "start it again")
        wanted = reference
        if reference.kind == "url" and await asyncio.to_thread(self._readdress, wanted, set(self._jobs)):
            yield note_line(f"going on with the paused pull of `{wanted.origin}`, by its new address")
        reference = await asyncio.to_thread(self._paused_as, wanted, set(self._jobs))
        if reference.text != wanted.text:
            anew = "" if wanted.level else f"; `{wanted.text}:{AUTO}` chooses anew"
            yield note_line(f"going on with `{reference.text}`, which was paused{anew}")
        if failed := await asyncio.to_thread(self._failure, reference.text):
            yield note_line(f"the last try ended with: {failed}")
        running = self._jobs.get(reference.text)
        if options.effort and running is not None and running.state == "running":
            raise Conflict(
                f"`{reference.text}` is on its way already",
                f"wait for its end, or pause it: `lm stop {reference.text}`",
            )
        job = self._job(reference, options)
        detached_before = job.detached and not detach
        if detach and not job.detached:
            job.detached = True
            await asyncio.to_thread(self._store.detach, reference.text, job.options.note())
        job.followers += 1
        try:
            await self._own(job, owner)
            if detached_before:
                yield note_line(
                    f"the daemon brings this in whether or not anybody looks on; `lm stop {reference.text}` pauses it"
                )
            async for line in job.lines():
                yield line
        finally:
            job.followers -= 1
            if not job.followers and not job.detached:
                job.pause()

    async def _own(self, job: Job, owner: str) -> None:
        """Let a pull belong to an owner too, also after a restart."""
        if owner not in job.owners:
            job.owners.add(owner)
            await asyncio.to_thread(self._store.note_owners, job.reference.text, job.owners)

    async def partials(self, may_touch: MayTouch = _everyone) -> list[dict[str, Any]]:
        """Rows of `/lm/partials`: the pulls that are under way or paused, of owners that pass; sizes in bytes."""
        under_way = set(self._jobs)

        def rows() -> list[dict[str, Any]]:
            mine = (ingest for ingest in self._store.partials() if _touches(may_touch, ingest.owners))
            each_row = (partial_row(self._store, ingest, ingest.title in under_way) for ingest in mine)
            return [row for row in each_row if row is not None]

        return await asyncio.to_thread(rows)

    def under_way(self, may_touch: MayTouch = _everyone) -> list[dict[str, Any]]:
        """The pulls that go on now, of owners that pass, as they are in memory; sizes in bytes, rates in bytes/s."""
        keys = ("status", "phase", "completed", "total", "rate", "eta")
        return [
            {"source": job.reference.text, "level": job.level, "detached": job.detached}
            | {key: job.progress[key] for key in keys if key in job.progress}
            for job in self._jobs.values()
            if job.state != "ended" and _touches(may_touch, job.owners)
        ]

    async def remove(self, name: str, installed: bool, may_touch: MayTouch = _everyone) -> list[str]:
        """End the pulls that `name` means, and throw away their files; the names of these pulls.

        A bare name means all levels, unless a model of that name is `installed`. Pulls of owners that do not pass
        `may_touch` are none.
        """
        reference, ending = parse(name), await self._meant(name, installed, may_touch)
        for job in ending:
            job.remove()
        await _ended(ending)

        abandoned = await asyncio.to_thread(self._abandon, reference, installed, may_touch)
        return list(dict.fromkeys([*(job.reference.text for job in ending), *abandoned]))

    async def pause(self, name: str, installed: bool, may_touch: MayTouch = _everyone) -> list[str]:
        """Pause the running pulls that `name` means, as in `remove`, all of them for ""; the names of these pulls."""
        if name:
            meant = await self._meant(name, installed, may_touch)
        else:
            meant = [job for job in self._jobs.values() if _touches(may_touch, job.owners)]
        running = [job for job in meant if job.state == "running"]
        for job in running:
            job.pause()
            await asyncio.to_thread(self._store.detach, job.reference.text, None)
        await _ended(running)
        return [job.reference.text for job in running]

    async def resume(self) -> None:
        """Go on with the detached pulls that an earlier daemon left."""
        try:
            notes = await asyncio.to_thread(
                lambda: [(each.title, each.detached, each.owners) for each in self._store.partials()]
            )
        except RegistryError as error:
            log.warning("what an earlier daemon pulled stays paused: %s", error)
            return
        for title, note, owners in notes:
            with contextlib.suppress(msgspec.MsgspecError, RegistryError):
                if note and not failure(note) and not self._stopping:
                    job = self._job(parse(title), PullOptions.of(note, self._config.hub))
                    job.owners |= owners
                    job.detached = True
                    log.info("going on with the pull of %s", redacted(title))

    async def stop(self) -> None:
        """Pause every job, and wait until all have ended."""
        self._stopping = True
        jobs = list(self._jobs.values())
        for job in jobs:
            job.pause()
        await _ended(jobs)

    async def _meant(self, name: str, installed: bool, may_touch: MayTouch) -> list[Job]:
        """The jobs that a name means. Reads files."""
        jobs = [job for job in self._jobs.values() if _touches(may_touch, job.owners)]
        placed = self._store.placed

        def meant() -> list[Job]:
            wanted = placed(parse(name))
            return [job for job in jobs if _means(wanted, placed(job.reference), job.level, installed)]

        return await asyncio.to_thread(meant)

    def _abandon(self, wanted: Reference, installed: bool, may_touch: MayTouch) -> list[str]:
        """Throw away the files of the paused pulls that `wanted` means; their names. Reads and removes files."""
        names, placed = [], self._store.placed
        wanted = placed(wanted)
        for ingest in self._store.partials():
            journal = ingest.journal
            meant = journal and _means(wanted, placed(parse(ingest.title)), journal.facts.level, installed)
            if meant and _touches(may_touch, ingest.owners):
                self._store.abandon(ingest)
                names.append(ingest.title)
        return names

    def _failure(self, title: str) -> str:
        """Why the paused pull of this name failed for good, "" for no reason. Reads files."""
        return next((failure(each.detached) for each in self._store.partials() if each.title == title), "")

    def _readdress(self, wanted: Reference, under_way: set[str]) -> bool:
        """Let the only paused pull of this file by another query or digest go on as `wanted`. Changes files.

        An address that is signed ends after a while. The puller compares the files.
        """
        titles = [ingest.title for ingest in self._store.partials()]
        others = [title for title in titles if title not in under_way and _one_place(wanted, parse(title))]
        if wanted.text in (*titles, *under_way) or len(others) != 1:
            return False
        self._store.readdress(others[0], wanted.text)
        return True

    def _paused_as(self, wanted: Reference, under_way: set[str]) -> Reference:
        """The name of the only paused pull that `wanted` may mean; `wanted` itself where there is none, or several.

        Reads files.
        """
        paused = {ingest.title: ingest.journal for ingest in self._store.partials() if ingest.title not in under_way}
        if wanted.text in paused or wanted.text in under_way or wanted.level == AUTO:
            return wanted
        placed = self._store.placed(wanted)
        installed = bool(self._store.variants(placed.name))
        candidates = [
            pulled
            for pulled, journal in ((self._store.placed(parse(title)), journal) for title, journal in paused.items())
            if journal and pulled.location == wanted.location and _means(placed, pulled, journal.facts.level, installed)
        ]
        return candidates[0] if len(candidates) == 1 else wanted

    def _job(self, reference: Reference, options: PullOptions) -> Job:
        """The running job of this name, or a new one that begins when the old one has ended."""
        before = self._jobs.get(reference.text)
        if before is not None and before.state == "running":
            return before
        job = self._jobs[reference.text] = Job(reference, options)
        job.task = asyncio.create_task(self._run(job, before.task if before else None))
        job.task.add_done_callback(lambda task: self._finish(job, task))
        return job

    def _finish(self, job: Job, task: asyncio.Task[None]) -> None:
        if task.cancelled():  # before it had begun: `_run` ends well
            job.add(error_line(_ending(job)))
        if self._jobs.get(job.reference.text) is job:
            del self._jobs[job.reference.text]
        job.end()

    async def _persist(self, job: Job) -> Model:
        """The model that a pull brings in; one that nobody waits for is tried again after trouble that may pass.

        The last error of such a pull is noted with it, and no later daemon goes on by itself; but one that may ask the
        network goes on where this one may not.
        """
        tries, name = 0, job.reference.text
        while True:
            try:
                pull = Pull(job, self._config, self._store, self._in_use, check=self._check, rules=self._rules)
                return await pull.run()
            except Exception as error:
                if not job.detached:
                    raise
                pause = None if job.followers else pause_after(error, tries)
                if pause is None:
                    final = "" if getattr(error, "code", "") == Offline.code else str(error)
                    await asyncio.to_thread(self._store.detach, name, job.options.note(final))
                    raise
                tries += 1
                log.info("pull of %s failed, and is tried again in %d s: %s", redacted(name), pause, error)
                job.add(note_line(f"{error}; trying again in {pause / 60:.0f} min"))
                await asyncio.sleep(pause)

    async def _run(self, job: Job, before: asyncio.Task[None] | None) -> None:
        name = redacted(job.reference.text)
        try:
            if before is not None:
                await asyncio.wait([before])  # it still holds the folder that this one needs
            model = await self._persist(job)
            await self._retire()
            job.add(success_line(model.name, model.digest))
        except asyncio.CancelledError:
            log.info("pull of %s was %s", name, "removed" if job.state == "removing" else "paused")
            job.add(error_line(_ending(job)))
        except Exception as error:
            if Problem.of(error).code == "internal":
                log.exception("pull of %s failed", name)
            else:
                log.info("pull of %s failed: %s", name, error)
            job.add(error_line(error))


def _one_place(one: Reference, other: Reference) -> bool:
    """Whether both are a URL of one place, with other queries or digests. The file there may be another one."""
    return one.kind == other.kind == "url" and (one.origin, one.level) == (other.origin, other.level)


def _touches(may_touch: MayTouch, owners: set[str]) -> bool:
    return any(may_touch(owner) for owner in owners)


async def _ended(jobs: list[Job]) -> None:
    await asyncio.gather(*(job.task for job in jobs if job.task), return_exceptions=True)


def _ending(job: Job) -> Stopping:
    text = job.reference.text
    if job.state == "removing":
        return Stopping(f"the pull of `{text}` was ended because the model was removed", f"lm pull {text}")
    return Stopping(f"the pull of `{text}` is paused", f"`lm pull {text}` goes on with it")


def _means(wanted: Reference, pulled: Reference, level: str, installed: bool) -> bool:
    """Whether a name that a user typed means this pull; `level` is the level in its journal, "" if not known."""
    name = name_at_level(pulled, level)
    if wanted.text == pulled.text or wanted.name.display.lower() == name.display.lower():
        return True
    bare = wanted.name.display.lower() == pulled.name.tagged(None).display.lower()
    return bare and wanted.name.tag is None and not installed
