"""The improver of the daemon: one improvement at a time, asked for by a client, or by itself while nobody asks.

Work goes on in a task of its own, whose processes stand still while somebody asks a model. One that a client follows
goes on some seconds later; any other when the machine is idle again. A client that leaves, and a daemon that ends,
leave a wish in the records: the next daemon goes on with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any

from registry.errors import DiskFull, Offline, RegistryError, SourceUnavailable
from registry.net.hub import Hub
from registry.store.model import Model
from runtime.errors import DoesNotFit
from server.children.background import BACKGROUND, BackgroundWork
from server.config import VERSION, Config
from server.errors import Conflict, ServerError, Stopping
from server.http.problems import Problem
from server.improving.foreseeing import source_bytes
from server.improving.idle import Idleness
from server.improving.improvement import Improvement, ImproveWish, Outcome, title_of
from server.improving.records import ImprovementRecord, Records, State, speaks_of
from server.improving.suitable import source_for
from server.library import Library
from server.loaded.pool import Pool
from server.pulls.jobs import Jobs
from server.pulls.lines import error_line, note_line
from server.pulls.origin import is_here
from server.pulls.story import Story

log = logging.getLogger("lm.improver")
Line = dict[str, Any]
# Seconds without a request after which a run that a client follows goes on.
GRACE = 3.0
# Seconds between two looks at the machine, at most, and between two looks for a model to improve.
_LOOK, _SEARCH = 5.0, 300.0
# Trouble that may pass: the model is tried again after `_LATER` seconds.
_PASSING = frozenset({SourceUnavailable.code, Offline.code, DiskFull.code, DoesNotFit.code, ServerError.code})
_LATER = 3600.0


class Run(Story):
    """One improvement that goes on. `now`: a client follows it, and it does not wait for idleness."""

    def __init__(self, wish: ImproveWish, share: float, *, now: bool) -> None:
        super().__init__()
        self.wish, self.now, self._share = wish, now, share
        self.background = BackgroundWork(share)
        self.task: asyncio.Task[None] | None = None

    def begin_anew(self) -> None:
        """Have processes again, after those before were ended."""
        self.background = BackgroundWork(self._share)


class Improver:
    """All improvements of the daemon."""

    def __init__(self, config: Config, library: Library, pool: Pool, jobs: Jobs) -> None:
        self._config, self._library, self._pool = config, library, pool
        self.records = Records(config.home / "improve")
        self.idleness = Idleness(config, pool, jobs)
        self._run: Run | None = None
        self._starting = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._later: dict[str, float] = {}
        self._search_at = 0.0
        self._stopping = False
        pool.asked = self._asked
        pool.give_way_first(self._give_way)

    async def watch(self) -> None:
        """Improve models while this machine is idle, until it is cancelled."""
        with contextlib.suppress(RegistryError):
            await asyncio.to_thread(self._tidy)
        while True:
            await asyncio.sleep(min(_LOOK, max(0.05, self._config.improve_after / 4)))
            try:
                await self._look()
            except RegistryError as error:
                log.warning("no model is improved for now: %s", error)
                await asyncio.sleep(_SEARCH)
            except Exception:
                log.exception("no model is improved for now")
                await asyncio.sleep(_SEARCH)

    async def stop(self) -> None:
        """End the work, and keep what it did."""
        self._stopping = True
        if self._run and self._run.task:
            self._run.task.cancel()
            await asyncio.wait([self._run.task])

    async def follow(self, wish: ImproveWish) -> AsyncGenerator[Line]:
        """Improve a model at once; the last line is success or error. Leaving pauses it, until nobody asks.

        Raises Stopping, Conflict while another client's goes on, and as `source_for`.
        """
        if self._stopping:
            raise Stopping("the daemon is stopping", "start it again")
        source_for(wish.model, self._library.rules)
        async with self._starting:
            before = self._run
            if before is not None and before.now:
                shown = before.wish.model.name
                raise Conflict(f"`{shown}` is being improved", "wait for its end: `lm jobs` shows how far it is")
            if before is not None:
                await self._cancel(before)
            await self._note_wish(wish)
            run = self._start(wish, now=True)
        run.followers += 1
        try:
            async for line in run.lines():
                yield line
        finally:
            run.followers -= 1
            if not run.ended:
                self.idleness.touch()
                self._search_at = 0.0
                await asyncio.shield(self._cancel(run))

    async def want(self, model: Model, hub: Hub, text: str) -> tuple[ImprovementRecord, int]:
        """Improve a model once this machine is idle, also by a hub; the bytes that are fetched then.

        Raises as `source_bytes`; Conflict where nothing goes on by itself.
        """
        if self._config.improve == "off":
            raise Conflict(
                "the setting `improve` is off, so nothing goes on by itself", f"`lm improve {model.name} --now`"
            )
        found = await source_bytes(self._config, self._library, model, hub)
        self._search_at = 0.0
        return await self._note_wish(ImproveWish(model, hub, text)), found

    async def leave(self, model: Model) -> ImprovementRecord:
        """Improve this model no more, unless somebody asks for it."""
        run = self._run
        if run is not None and run.wish.model.key.same(model.key):
            await self._cancel(run)
        await asyncio.to_thread(self._drop_beside, model.name)
        return await self._note(model, "off", "it is left as it is: `lm improve --off` said so")

    async def roll_back(self, model: Model) -> Model:
        """Go back to the file that a model had before it was improved; it is not improved again by itself.

        Raises NothingOlder, and as `Store.roll_back`.
        """
        store = self._library.store
        after = model.card
        found = await asyncio.to_thread(store.roll_back, model)
        await self._note(found, "rolled back", "it was improved, and taken back", before=found.card, after=after)
        await self._library.collect(self._pool.open_blobs())
        await self._pool.retire()
        return found

    async def rows(self) -> list[Line]:
        """The improvements that go on, that wait, and that have ended, without their texts."""
        run, rows = self._run, []
        for record in await asyncio.to_thread(self.records.all):
            row = {"model": record.name, "state": record.state, "sentence": record.sentence, "at": record.at}
            row |= {key: card["mean"] for key, card in (("before", record.before), ("after", record.after)) if card}
            if run is not None and run.wish.model.name == record.name:
                why = run.background.held
                row |= {"state": "held" if why else "running", "sentence": why or str(run.progress.get("status", ""))}
                row |= {key: run.progress[key] for key in ("phase", "completed", "total") if key in run.progress}
            rows.append(row)
        return rows

    def _asked(self) -> None:
        """A request came or ended: work stands still at once, and goes on later."""
        self.idleness.touch()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._run is None:
            return
        self._run.background.hold("somebody asks a model")
        if not self._pool.pending and self._run.now:
            self._timer = asyncio.get_running_loop().call_later(GRACE, self._run.background.release)

    async def _give_way(self) -> bool:
        """End the processes, where a model is to be loaded and lacks memory; whether there were any."""
        run = self._run
        if run is None or not run.background.has_processes:
            return False
        log.info("the improvement of %s gives its memory to a model that is asked for", run.wish.model.name)
        await run.background.end("a model that is asked for needs its memory")
        return True

    async def _look(self) -> None:
        """Let work go on or stand still, as the machine is; begin some where there is any."""
        why, run = self.idleness.why_not(), self._run
        if run is not None and not run.now and run.background.held != why:
            run.background.hold(why) if why else run.background.release()
        now = asyncio.get_running_loop().time()
        if run is None and not why and now >= self._search_at:
            self._search_at = now + _SEARCH
            wish = await self._next()
            async with self._starting:
                if wish is not None and self._run is None and not self.idleness.why_not():
                    self._search_at = now
                    await self._note_wish(wish, asked=False)
                    self._start(wish, now=False)

    async def _next(self) -> ImproveWish | None:
        """The model to improve next: one that somebody wants, else one that was asked, else the newest."""
        now, found = asyncio.get_running_loop().time(), []
        used = {tally.model.name for tally in self._pool.tallies()}
        for model in await self._library.models():
            record = await asyncio.to_thread(self.records.of, model.name)
            if record is not None and not speaks_of(record, model):
                record = None
            wanted = record is not None and record.state == "wanted"
            chosen = model.own.get("effort") and not wanted  # its user had statistics of another text in mind
            if (record and not wanted) or chosen or self._later.get(model.name, 0.0) > now:
                continue
            try:
                source = source_for(model, self._library.rules)
            except (ServerError, RegistryError):
                continue
            if not await asyncio.to_thread(is_here, source):
                far = source.kind != "folder"
                if not far or not (self._config.improve == "hub" or (record is not None and record.hub)):
                    continue
            text = await asyncio.to_thread(self.records.text, record) if record else ""
            found.append((not wanted, model.name not in used, ImproveWish(model, self._config.hub, text)))
        return min(found, key=lambda each: each[:2])[2] if found else None

    def _start(self, wish: ImproveWish, *, now: bool) -> Run:
        run = self._run = Run(wish, 1.0 if now else self._config.improve_share / 100, now=now)
        run.task = asyncio.create_task(self._work(run))
        run.task.add_done_callback(lambda task: self._finish(run, task))
        return run

    def _finish(self, run: Run, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            name = run.wish.model.name
            log.info("the improvement of %s is paused", name)
            paused = Stopping(f"the improvement of `{name}` is paused", f"`lm improve {name}` goes on with it")
            run.add(error_line(paused))
        if self._run is run:
            self._run = None
        run.end()

    async def _work(self, run: Run) -> None:
        """One improvement, up to its record."""
        try:
            while not await self._try(run):
                run.add(note_line(f"{run.background.ended}: it goes on when nobody asks"))
                while self._pool.pending:
                    await asyncio.sleep(GRACE)
                await asyncio.sleep(GRACE)
                run.begin_anew()
        except Exception as error:
            await self._failed(run, error)
            run.add(error_line(error))

    async def _try(self, run: Run) -> bool:
        """One attempt; False where its processes were ended, and a client waits for another attempt."""
        BACKGROUND.set(run.background)
        if self._pool.pending:
            run.background.hold("somebody asks a model")
        model = run.wish.model
        improvement = Improvement(self._config, self._library, run.wish, self._pool.open_blobs, self._pool.retire)
        try:
            async with contextlib.aclosing(improvement.lines()) as lines:
                async for line in lines:
                    run.add(line)
        except Exception as error:
            if not run.background.ended:
                raise
            log.info("the improvement of %s waits: %s", model.name, run.background.ended)
            if run.now:
                return False
            raise Stopping(f"{run.background.ended}: it goes on later") from error
        outcome = improvement.outcome
        assert outcome is not None
        await self._settle(outcome)
        run.add(
            {"status": "success", "phase": "done", "model": outcome.model.name, "state": outcome.state}
            | {"sentence": outcome.sentence, "before": outcome.before, "after": outcome.after}
        )
        return True

    async def _settle(self, outcome: Outcome) -> None:
        """Note how an improvement ended."""
        log.info("%s: %s, %s", outcome.model.name, outcome.state, outcome.sentence)
        before, after = outcome.before, outcome.after
        await self._note(outcome.model, outcome.state, outcome.sentence, before=before, after=after)

    async def _failed(self, run: Run, error: Exception) -> None:
        """Note that an improvement failed; after trouble that may pass, or when it gave way, it is tried later."""
        model, code = run.wish.model, Problem.of(error).code
        if code == "internal":
            log.exception("the improvement of %s failed", model.name)
        else:
            log.info("the improvement of %s failed: %s", model.name, error)
        if isinstance(error, Stopping):
            return
        if code in _PASSING:
            self._later[model.name] = asyncio.get_running_loop().time() + _LATER
            return
        with contextlib.suppress(RegistryError):
            await asyncio.to_thread(self._drop_beside, model.name)
            await self._library.collect(self._pool.open_blobs())  # its weights, where it was removed meanwhile
            await self._note(model, "failed", str(Problem.of(error).message))

    async def _cancel(self, run: Run) -> None:
        if run.task is not None and not run.task.done():
            run.task.cancel()
            await asyncio.wait([run.task])

    async def _note_wish(self, wish: ImproveWish, *, asked: bool = True) -> ImprovementRecord:
        """Note a wish. One that nobody asked for does not allow a hub that the settings do not."""
        model = wish.model
        record = await asyncio.to_thread(self.records.of, model.name)
        asked = asked or (record is not None and record.state == "wanted" and record.hub)
        sentence = "somebody wants it" if asked else "its source lies on this machine"
        return await self._note(model, "wanted", sentence, hub=asked, text=wish.text)

    async def _note(
        self,
        model: Model,
        state: State,
        sentence: str,
        *,
        hub: bool = False,
        text: str = "",
        before: Line | None = None,
        after: Line | None = None,
    ) -> ImprovementRecord:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        cards = {"before": before or {}, "after": after or {}}
        record = ImprovementRecord(
            model.name, model.blob_digest, state, sentence, at, VERSION, hub, bool(text), **cards
        )
        await asyncio.to_thread(self.records.note, record, text)
        return record

    def _drop_beside(self, name: str = "") -> None:
        """Throw away the files beside models with which nobody goes on, and the file beside the model of this name."""
        wanted = [record.name for record in self.records.all() if record.state == "wanted"]
        self._library.store.drop_beside({title_of(each) for each in wanted if each != name})

    def _tidy(self) -> None:
        """Remove files beside models with which nobody goes on, and records of models that are not here any more."""
        here = {model.name for model in self._library.store.models()}
        for record in self.records.all():
            if record.name not in here and record.state != "off":
                self.records.forget(record.name)
        self._drop_beside()
