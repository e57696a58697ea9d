"""The daemon's side of one worker process: start, frames to the requests that wait for them, death.

States: loading (until `Ready`), ready, dead. Whoever awaits a frame of a worker that dies gets WorkerDied at once.
`overdue` says when a worker has to be killed: it shows no sign of life, or computes without a step. A worker's frames
are not trusted: they have a cap and must decode (`runtime/child.py`), and must be of the kind that was asked for.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from registry.store.catalog import Model
from runtime.child import FRAME_LIMIT, Child
from runtime.confinement import Confinement
from runtime.errors import BadRequest, EngineError, LoadFailed, WorkerDied
from runtime.machine.fit import Need
from runtime.messages import (
    Beat,
    CallDelta,
    Cancel,
    Delta,
    Drafts,
    Embed,
    Failed,
    Finished,
    FromWorker,
    Load,
    Rank,
    Ready,
    Shutdown,
    Started,
    Submit,
    Tokenize,
    Tokens,
    Vectors,
)
from runtime.processor import FOREIGN
from server.errors import BodyTooLarge, ChildError, Stopping
from server.loaded.tally import Tally

log = logging.getLogger("lm.worker")
SILENT_SECONDS = 10.0
STALLED_SECONDS = 60.0
STOP_SECONDS = 3.0
# Tokens that an answer must have before it says how fast the model is.
SPEED_TOKENS = 24
# The reasons for which a process ends without a crash.
STOPPED, NOT_LOADED, STOPPING = "was stopped", "could not load", "ends with the daemon"
_ids = itertools.count(1)

Answer = Started | Delta | CallDelta | Finished
Death = EngineError | Stopping


@dataclass(frozen=True)
class Speed:
    """How fast an answer came that had the worker to itself: seconds per token, with `context` tokens before it."""

    context: int
    seconds: float

    @classmethod
    def of(cls, finished: Finished) -> Speed | None:
        """None for an answer too short to tell, or with drafts: its steps were of several sizes.

        The first token comes with the prompt, so it does not count.
        """
        steps = finished.answer_tokens - 1
        if steps < SPEED_TOKENS or finished.answer_ns <= 0 or finished.drafted:
            return None
        return cls(finished.prompt_tokens + steps // 2, finished.answer_ns / 1e9 / steps)


class Worker:
    """One process that holds one model, and needs the memory `need` as it was predicted.

    `draft` is the model beside it that drafts for it, None where none does. `context` is the number of tokens asked
    for, once it is ready the true number. `kv_type` is the type of its KV cache, `kv_reason` why the type of the
    settings was not taken. `answered` tells whether any answer came from it, `crashed` whether it ended by itself,
    `spilled` the bytes of conversations outside its KV cache. `obstacle` says why long prompts slow running answers, ""
    where they do not. `confinement` has the walls around it, once it is ready. `drafts` counts drafted tokens,
    `adapters` are the names of those in memory. Only the worker itself changes these.
    """

    def __init__(
        self, model: Model, load: Load, child: Child, need: Need, tally: Tally, draft: Model | None = None
    ) -> None:
        self.model = model
        self.draft = draft
        self.tally = tally
        self.kv_reason = ""
        self.confinement = Confinement()
        self.context, self.kv_type = load.cache_config.context, load.cache_config.kv_type
        self.need = need
        self.answered = self.crashed = False
        self.threads = load.threads
        self.spilled, self.obstacle, self.drafts = 0, "", Drafts()
        self.adapters: list[str] = []
        self.ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._child = child
        self._streams: dict[int, asyncio.Queue[FromWorker | Death]] = {}
        self._opened = 0
        self._users = 0
        self._speed: Speed | None = None
        self._began = self._last_used = self._sign_of_life = self._last_step_at = asyncio.get_running_loop().time()
        self._last_step = -1
        # A minute, and the time to read the file at 50 MB/s.
        self._load_seconds = 60.0 + (model.size + (draft.size if draft else 0)) / 50e6
        self._ending = ""
        self._background: set[asyncio.Task[None]] = set()
        self.reader = asyncio.create_task(self._read(load))

    @classmethod
    async def start(
        cls,
        model: Model,
        load: Load,
        *,
        need: Need,
        log_file: Path,
        tally: Tally | None = None,
        draft: Model | None = None,
    ) -> Worker:
        """Spawn the process, which then loads the model and its draft.

        `need` is the memory that it is predicted to take. Its requests are counted in `tally`.
        """
        child = await Child.spawn("runtime.worker", frames=FromWorker, log=log_file)
        log.info("worker %d starts for %s, context %d", child.pid, model.name, load.cache_config.context)
        # Nothing is awaited in between: nobody can lose the process.
        return cls(model, load, child, need, tally or Tally(model), draft)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._child.pid

    @property
    def dead(self) -> bool:
        """Whether nothing more will come from it."""
        return self.reader.done()

    @property
    def leaving(self) -> bool:
        """Whether it is dead or on its way there, so that no new request may be given to it."""
        return self.dead or bool(self._ending)

    @property
    def loading(self) -> bool:
        """Whether the model is not loaded yet; the memory it needs is then not taken yet either."""
        return not self.ready.done()

    @property
    def idle(self) -> bool:
        """Whether nobody uses it, and its model is loaded."""
        return not self._users and not self.loading

    def lacks(self, draft: Model | None) -> bool:
        """Whether it holds another draft model than a request wants, or none, and nobody is in its way to change."""
        held = self.draft.blob_digest if self.draft else ""
        return draft is not None and draft.blob_digest != held and self.idle

    @property
    def users(self) -> int:
        """How many use it now."""
        return self._users

    @property
    def last_used(self) -> float:
        """When the last user left, by the event loop's clock; before the first one, when it was started."""
        return self._last_used

    @contextmanager
    def used(self) -> Iterator[None]:
        """Count a user, so that the worker is neither expired nor chosen to make room meanwhile."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            self._last_used = asyncio.get_running_loop().time()

    def take_speed(self) -> Speed | None:
        """The speed of the last answer, if it had the worker to itself and was not taken before."""
        speed, self._speed = self._speed, None
        return speed

    async def answer(self, submit: Submit) -> AsyncGenerator[Answer]:
        """The frames of one request, until all its answers have finished; leaving early cancels it.

        Raises ChildError with the worker's own error, WorkerDied when the process goes, and as `_send`.
        """
        submit.id = next(_ids)
        # Tokens that a grammar forces take no step, so they say nothing of the model's speed; nor do adapters' steps.
        alone = not self._streams and submit.count == 1 and submit.grammar is None and not submit.adapters
        queue = self._open(submit.id)
        opened = self._opened  # a later request raises it: then this answer had the worker no longer to itself
        left = submit.count
        with self.tally.request() as counting:
            try:
                await self._send(submit)
                while left:
                    frame = await self._next(queue)
                    counting.count(frame)
                    if isinstance(frame, Finished):
                        left -= 1
                        alone = alone and opened == self._opened
                        self._speed = Speed.of(frame) if alone else None
                    if not isinstance(frame, Answer):
                        raise self._out_of_place(frame)
                    self.answered = self.answered or not isinstance(frame, Started)
                    yield frame
            except ChildError:
                left = 0
                raise
            finally:
                del self._streams[submit.id]
                if left and not self.dead:
                    self._later(Cancel(submit.id))

    async def tokenize(self, request: Tokenize) -> Tokens:
        """The token ids of a text, or of a request's prompt."""
        frame = await self._ask(request)
        if not isinstance(frame, Tokens):
            raise self._out_of_place(frame)
        return frame

    async def embed(self, request: Embed | Rank) -> Vectors:
        """One vector for each input, or one score for each text."""
        frame = await self._ask(request)
        if not isinstance(frame, Vectors):
            raise self._out_of_place(frame)
        self.tally.read(frame.tokens)
        return frame

    async def stop(self, why: str = STOPPED) -> None:
        """End the process: politely, then not. Who waits for an answer gets WorkerDied, or Stopping if that is why."""
        self._ending = self._ending or why
        if self.loading:
            self._child.kill()
        else:
            self._later(Shutdown())
        await asyncio.wait([self.reader], timeout=STOP_SECONDS)
        if not self.dead:
            self._child.kill()
            await asyncio.wait([self.reader])

    def overdue(self) -> str:
        """Why the worker has to be taken for hung, "" where it is well."""
        now = asyncio.get_running_loop().time()
        silent, stalled = now - self._sign_of_life, now - self._last_step_at
        if self.loading:
            late = now - self._began > self._load_seconds
            return f"did not load within {self._load_seconds:.0f} s" if late else ""
        if silent > SILENT_SECONDS:
            return f"showed no sign of life for {silent:.0f} s"
        return f"computed nothing for {stalled:.0f} s" if stalled > STALLED_SECONDS else ""

    def kill(self, why: str) -> None:
        """End a process that cannot be asked any more."""
        log.error("worker %d of %s is killed: it %s", self.pid, self.model.name, why)
        self._ending = self._ending or why
        self._child.kill()

    def _open(self, number: int) -> asyncio.Queue[FromWorker | Death]:
        if self.dead:
            raise self._death()
        self._opened += 1
        self._streams[number] = asyncio.Queue()
        return self._streams[number]

    async def _ask(self, request: Tokenize | Embed | Rank) -> FromWorker:
        request.id = next(_ids)
        queue = self._open(request.id)
        try:
            await self._send(request)
            return await self._next(queue)
        except asyncio.CancelledError:
            if not self.dead:
                self._later(Cancel(request.id))
            raise
        finally:
            del self._streams[request.id]

    async def _send(self, frame: Submit | Tokenize | Embed | Rank) -> None:
        """Send a request. Raises BodyTooLarge for one above the size of a frame, BadRequest for an endless number."""
        try:
            await self._child.send(frame)
        except ValueError:
            message = f"the request has more than {FRAME_LIMIT >> 20} MiB of text or token ids"
            raise BodyTooLarge(message, "send less at once") from None
        except OverflowError:
            raise BadRequest("the request has a number of more than 64 bits", "correct it") from None

    def _later(self, frame: msgspec.Struct) -> None:
        """Send from where nothing may be awaited: a handler that is being cancelled."""
        task = asyncio.create_task(self._child.send(frame))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _next(self, queue: asyncio.Queue[FromWorker | Death]) -> FromWorker:
        frame = await queue.get()
        if isinstance(frame, Death):
            raise frame
        if isinstance(frame, Failed):
            raise ChildError(frame.code, frame.message, frame.hint, frame.field)
        return frame

    def _out_of_place(self, frame: FromWorker) -> Death:
        """Kill a worker that sent another kind of frame than was asked for; the error to raise."""
        self.kill(f"sent {type(frame).__name__} out of place")
        return self._death()

    async def _read(self, load: Load) -> None:
        try:
            await self._child.send(load)
            while (frame := await self._child.receive()) is not None:
                self._dispatch(frame)
        finally:
            await self._child.reap()
            self._end()

    def _dispatch(self, frame: FromWorker) -> None:
        self._sign_of_life = asyncio.get_running_loop().time()
        match frame:
            case Beat(step=step, busy=busy):
                self.spilled, self.obstacle, self.drafts = frame.spilled, frame.obstacle, frame.drafts
                self.adapters = frame.adapters
                if step != self._last_step or not busy:
                    self._last_step, self._last_step_at = step, self._sign_of_life
            case Ready():
                self._on_ready(frame)
            case Failed(id=0):
                self._ending = NOT_LOADED
                if not self.ready.done():
                    self.ready.set_exception(ChildError(frame.code, frame.message, frame.hint))
            case _:
                if (queue := self._streams.get(frame.id)) is not None:
                    queue.put_nowait(frame)

    def _on_ready(self, ready: Ready) -> None:
        self.context, self.confinement = ready.context, ready.confinement
        if ready.confinement.missing:
            log.warning("worker %d: %s", self.pid, ready.confinement.sentence)
        self._last_step_at = self._sign_of_life
        if not self.ready.done():
            self.ready.set_result(ready)
        log.info("worker %d is ready with %s after %.2f s", self.pid, self.model.name, ready.load_ns / 1e9)

    def _end(self) -> None:
        death = self._death()
        self.crashed = self._ending not in (STOPPED, NOT_LOADED, STOPPING)
        log.info("worker %d of %s ended (%s)", self.pid, self.model.name, self._ending or str(death))
        if not self.ready.done():
            self.ready.set_exception(death)
        if self.ready.done() and not self.ready.cancelled():
            self.ready.exception()  # seen, even if nobody waits any more
        for queue in self._streams.values():
            queue.put_nowait(death)

    def _death(self) -> Death:
        """The error for whoever waits for a frame, by the way the process ended."""
        name = f"`{self.model.name}`"
        if self._ending == STOPPING:
            return Stopping("the daemon is stopping, and ended this answer", "ask again when it runs")
        if self._ending == STOPPED:
            return WorkerDied(f"{name} was unloaded in mid-answer", "ask again: it is loaded anew")
        how = self._ending or self._child.problem or self._child.ending
        if self._child.crash == "SIGILL":
            why = f"the worker of {name} ended: {FOREIGN}"
            return LoadFailed(why, "compile it on this machine, or install a portable build of it: see `lm doctor`")
        if self.loading:
            hint = "ask again; if that recurs, memory is short or the file damaged: see `lm logs`"
            return LoadFailed(f"the worker of {name} {how} while it loaded", hint)
        hint = "ask again: it is started anew; if that recurs, memory may be short: choose a smaller level"
        return WorkerDied(f"the worker of {name} {how}", hint)
