"""The engine: one loop that admits requests, computes batches, draws tokens, sends text, and ends answers.

The loop serves all requests of its model together. `runtime/engine/schedule.py` decides what is in a step. Here the
step is computed, a token is drawn for every answer in it, and all frames go out in one write.

Threads: `run` owns the context. `take` is called by the thread that reads the socket, and does there what needs no
context (`runtime/engine/intake.py`). A cancel that comes while its prompt is being computed aborts that step.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

from runtime import messages as m
from runtime.cache.pool import CellPool
from runtime.cache.spill import Spill
from runtime.engine.answering import Answering
from runtime.engine.embedding import Embedder
from runtime.engine.huge_pages import HugePages
from runtime.engine.inbox import Inbox
from runtime.engine.intake import Intake
from runtime.engine.pace import PATIENCE, Pace
from runtime.engine.prefill import SidePrefill
from runtime.engine.schedule import Schedule, Step
from runtime.engine.session import Session
from runtime.engine.speculation import make_speculation
from runtime.errors import EngineError, QueueFull, Timeout
from runtime.llama.adapters import Adapters
from runtime.llama.context import ABORTED, NO_ROOM, OK, Context, ContextParams, output_rows, sequence_count
from runtime.llama.library import usable_threads
from runtime.llama.model import LlamaModel

# Failed steps in a row after which the process ends.
_FAULTS = 3
_NOTHING: frozenset[int] = frozenset()
_NO_STEP = Step([], [], None, 0.0)


class LlamaEngine:
    """Answers with llama.cpp. Call `open`, then `run`; another thread calls `take`. `steps` counts computed batches."""

    def __init__(
        self,
        load: m.Load,
        send: Callable[..., None],
        model: LlamaModel,
        params: ContextParams,
        draft: LlamaModel | None = None,
    ) -> None:
        """Make the context of `params` for `model`, and of its `draft`; raises LoadFailed, BadRequest."""
        self._load = load
        self._send = send
        self._model = model
        self._context = Context(model, params)
        limit = load.spill if load.spill >= 0 else self.cache_bytes // 2
        spill = Spill(self._context, limit, model.memory, model.window)
        self._pool = CellPool(self._context, self._context.tokens, params.sequences, model.memory, spill)
        self._adapters = Adapters(model, self._pool.spill.lend, self._pool.spill.take_back)
        self._pace = Pace(self._context.batch_size, load.gap)
        side = (model, self._context, self._pool, params, self._adapters, load.short_context)
        self._side = None if SidePrefill.hindrance(model) else SidePrefill(*side)
        self._frames: list[Any] = []
        self._answering = Answering(model.vocabulary, self._context, self._frames.append)
        self._embedder = Embedder(model, self._context, self._pool, self._frames.append)
        self._schedule = Schedule(
            self._pool,
            self._pace,
            load.cache_config.sequences,
            self._side,
            outputs=self._context.outputs,
            give_way=self._embedder.give_way,
        )
        parts = (self._pool, self._pace, self._context, self._answering)
        self._speculation = make_speculation(model, draft, load, params, parts)
        self._intake = Intake(model, self._context, self._speculation)
        self._inbox = Inbox(self._intake, send)
        self._huge_pages = HugePages()
        self._step = _NO_STEP
        self._computing = _NOTHING
        """Requests whose prompts are being computed, in a step that may be aborted."""
        self._calm = True
        """False after a step that a slice of a prompt followed: the slice leaves cold caches for the next step."""
        self._faults = 0
        self._set_back = 0
        """Steps in a row that found no room although nothing else could give way."""
        self._closing = False
        self.steps = 0

    # ---- what the worker calls

    @classmethod
    def open(cls, load: m.Load, send: Callable[..., None]) -> tuple[Self, m.Ready]:
        """Load the model and make the context; raises LoadFailed, BadRequest. `send` gets the frames of answers."""
        started = time.monotonic_ns()
        model = LlamaModel(Path(load.path), gpu_layers=load.gpu_layers, heads=load.heads and load.speculation)
        draft = LlamaModel(Path(load.draft[0]), gpu_layers=0) if load.draft[0] else None
        threads = min(load.threads, usable_threads())
        cache = load.cache_config
        total = sequence_count(model, cache.sequences)
        rollback = load.rollback if load.speculation and model.memory != "cells" else 0
        outputs = output_rows(model, cache.sequences, drafts=load.speculation, rollback=rollback)
        params = ContextParams(cache.context, total, outputs, threads, cache.kv_type, rollback=rollback)
        engine = cls(load, send, model, params, draft)
        # The garbage collector would walk through all modules and the model's vocabulary again and again, in the
        # middle of a step. They live as long as the process, so it is told to leave them out.
        gc.freeze()
        buffers, drafting = engine._context.buffers, engine._speculation.buffers
        return engine, m.Ready(
            context=engine._context.tokens,
            sequences=cache.sequences,
            load_ns=time.monotonic_ns() - started,
            weights_bytes=model.buffers.get("model", model.size) + drafting.get("model", 0),
            cache_bytes=engine.cache_bytes + drafting.get("KV", 0),
            compute_bytes=sum(each.get(kind, 0) for each in (buffers, drafting) for kind in ("compute", "output")),
        )

    @property
    def cache_bytes(self) -> int:
        """Bytes of the KV cache and of recurrent states (llama.cpp's `RS`)."""
        return self._context.buffers.get("KV", 0) + self._context.buffers.get("RS", 0)

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self._inbox.requests or self._schedule.sessions or self._embedder.busy)

    @property
    def spilled(self) -> int:
        """Bytes of copies of sequences, of adapters, and of the second context for long prompts."""
        return self._pool.spill.used + self._adapters.bytes + (self._side.bytes if self._side else 0)

    @property
    def obstacle(self) -> str:
        """Why long prompts are not read beside answers; "" where they are."""
        if self._model.embeds:
            return ""
        return self._side.obstacle if self._side else SidePrefill.hindrance(self._model)

    @property
    def drafts(self) -> m.Drafts:
        """Tokens of drafts so far, and what speaks for or against them."""
        return self._speculation.drafts

    @property
    def adapters(self) -> list[str]:
        """The names of the adapters in memory."""
        return self._adapters.names

    def take(self, frame: Any) -> None:
        """Accept a frame: refuse it at once, or hand it to the loop ready to run."""
        try:
            match frame:
                case m.Submit():
                    self._check_queue()
                    self._inbox.submit(frame)
                case m.Embed():
                    self._inbox.put(self._embedder.prepare(frame))
                case m.Rank():
                    self._inbox.put(self._embedder.prepare_ranking(frame))
                case m.Tokenize():
                    self._inbox.tokenize(frame)
                case m.Cancel():
                    if self._inbox.cancel(frame.id):
                        return
                    self._inbox.put(frame)
                    if frame.id in self._computing or frame.id == self._embedder.computing:
                        self._context.abort()
                case _:
                    self._inbox.put(frame)
        except EngineError as error:
            self._send(m.Failed.of(frame.id, error))

    def run(self) -> None:
        """Serve until `Shutdown`."""
        while not self._closing:
            self._drain()
            self._expire()
            self._admit()
            rows = self._fill()
            if rows:
                self._compute(rows)
            if self._embedder.busy:
                budget = self._pace.budget(self._schedule.decoding, 1, PATIENCE)
                self._adapters.use(self._context, ())
                self._embedder.step(budget, self._schedule.committed_cells())
                self.steps += 1
            self._flush()
            if self._side:
                self._advance_side(self._side)
        if self._side:
            self._side.close()

    # ---- requests come in

    def _check_queue(self) -> None:
        if self._inbox.waiting + self._schedule.waiting_requests >= self._load.queue:
            raise QueueFull(f"{self._load.queue} requests wait for this model already", "try again later")

    def _drain(self) -> None:
        """Empty the inbox; wait for a frame when there is nothing else to do."""
        idle = not (self._schedule.running or self._schedule.waiting or self._embedder.busy)
        self._context.clear_abort()
        if idle and self._side:
            self._side.free()
        while idle and self._inbox.empty and self._huge_pages.collapse_next():
            pass
        while idle or not self._inbox.empty:
            idle = False
            item = self._inbox.get()  # blocks at most once, when idle
            match item:
                case list():
                    self._welcome(item)
                case m.Cancel():
                    self._cancel(item.id)
                case m.Shutdown():
                    self._closing = True
                case _:
                    self._embedder.add(item)

    def _welcome(self, sessions: list[Session]) -> None:
        """Let the sessions of a request wait, once the adapters that they want are loaded."""
        stop_side = self._side.drop if self._side else lambda: None
        self._adapters.free_unused((each.adapters for each in self._schedule.sessions), stop_side)
        if sessions and sessions[0].adapters:
            try:
                in_use = (each.adapters for each in self._schedule.sessions)
                self._adapters.load(sessions[0].adapters, in_use, stop_side)
            except EngineError as error:
                self._frames.append(m.Failed.of(sessions[0].id, error))
                return
        self._schedule.waiting.extend(sessions)

    def _cancel(self, request: int) -> None:
        for session in [session for session in self._schedule.sessions if session.id == request]:
            self._finish(session, "cancelled")
        self._embedder.cancel(request)

    def _expire(self) -> None:
        timed = [session for session in self._schedule.sessions if session.deadline]
        for session in [session for session in timed if session.deadline < time.monotonic()]:
            seconds = session.request.limits.seconds
            self._fail(session, Timeout(f"the answer took longer than {seconds:g} seconds", "allow more time"))

    def _admit(self) -> None:
        if self._embedder.patient:
            for session in self._schedule.admit(self._embedder.pending):
                self._begin(session)
                self._embedder.overtake()

    def _begin(self, session: Session) -> None:
        # One with a sampler ran before, and was set back; one without a sequence failed with another of its request.
        if session.seq and not session.sampler:
            self._go_on(session, self._answering.begin)

    # ---- one step

    def _fill(self) -> int:
        """Plan the next step and put its rows into the batch; the number of rows."""
        context = self._context
        self._step = self._speculation.extended(self._schedule.plan())
        for session in self._step.ending:
            self._finish(session, "length")
        row, stretches = 0, self._step.stretches
        for session, start, size, wanted, draft in stretches:
            assert session.seq
            if size == wanted == 1 and not draft:
                context.put_token(row, session.tokens[start], start, session.seq.number)
            else:
                tokens = session.tokens[start : start + size] + draft
                context.put_prompt(row, memoryview(tokens), start, session.seq.number, wanted + len(draft))
            row += size + len(draft)
        # A step with a prompt may take long. An abort costs every session of the step its rows. A recurrent state
        # cannot go back to before the step, so with such a model only a step of one session may be aborted.
        if self._model.memory == "cells" or len(stretches) == 1:
            prompts = (each for each in stretches if each.size > 1 and each.session.phase == "prefill")
            self._computing = frozenset(stretch.session.id for stretch in prompts)
        return row

    def _compute(self, rows: int) -> None:
        started = time.perf_counter()
        changed = self._adapters.use(self._context, self._step.adapters)
        status = self._context.decode(rows)
        seconds = time.perf_counter() - started
        self.steps += 1
        self._computing = _NOTHING
        if status != OK:
            self._recover(status)
            return
        self._faults = self._set_back = 0
        self._speculation.follow(self._step)
        stretches = self._step.stretches
        prompts = sum(stretch.size for stretch in stretches if stretch.size > 1) if rows > len(stretches) else 0
        self._pace.note(rows - prompts, prompts, seconds, calm=self._calm and not changed)
        self._schedule.turns.note(rows, seconds)
        row = 0
        for stretch, session, seq in [(each, each.session, each.session.seq) for each in stretches if each.session.seq]:
            first, row = row, row + stretch.size + len(stretch.draft)
            if session.seq is None:  # it failed with another answer of its request, and what was computed is not kept
                self._pool.drop_rest(seq)
                continue
            if session.reads_all:
                self._answering.report(session, stretch.start, stretch.size, first)
            self._schedule.computed(stretch)
            if stretch.wanted and not session.pending:
                self._go_on(session, partial(self._speculation.draw, stretch=stretch, row=first + stretch.size - 1))

    def _go_on(self, session: Session, step: Callable[[Session], m.FinishReason | None]) -> None:
        """Take a step of an answer, and end it where that says so or fails."""
        try:
            reason = step(session)
        except EngineError as error:
            self._fail(session, error)
        else:
            if reason:
                self._finish(session, reason)

    def _advance_side(self, side: SidePrefill) -> None:
        """Between two steps: go on with a long prompt."""
        session = self._step.side
        if session:
            side.advance(session, self._step.seconds)
            self._schedule.settle(session)
            self.steps += 1
            self._calm = False
        else:
            self._calm = True
            if side.busy:
                side.drop()

    def _recover(self, status: int) -> None:
        """Deal with a step that was not computed: aborted, without room after all, or failed."""
        for session, start, *_ in self._step.stretches:
            if session.seq and not self._context.cut(session.seq.number, start):
                # A recurrent state cannot go back: the session starts again from its last checkpoint.
                self._pool.clear(session.seq)
                self._schedule.set_back(session)
        if status == ABORTED:
            return
        if status == NO_ROOM and self._free_room():
            return
        self._faults += 1
        for stretch in self._step.stretches:
            error = EngineError(f"llama.cpp could not compute this step (status {status})", "try again")
            self._fail(stretch.session, error)
        if self._faults >= _FAULTS:
            raise RuntimeError(f"{_FAULTS} steps in a row failed with status {status}")

    def _free_room(self) -> bool:
        """Free cells after a step that found too few, even where the pool counts enough; False where that is no use.

        A session that is set back is soon admitted again, so it is no use the third time in a row.
        """
        if self._pool.evict() or self._embedder.give_way():
            return True
        self._set_back += 1
        running = self._schedule.running
        if len(running) < 2 or self._set_back == _FAULTS:
            return False
        self._schedule.set_back(running[-1])
        return True

    # ---- answers end

    def _finish(self, session: Session, reason: m.FinishReason) -> None:
        self._frames += session.rest()
        self._frames.append(session.finished(reason))
        self._release(session)

    def _fail(self, session: Session, error: EngineError) -> None:
        """End a request with an error, all of its answers."""
        self._frames.append(m.Failed.of(session.id, error))
        for other in [other for other in self._schedule.sessions if other.id == session.id]:
            self._release(other)

    def _release(self, session: Session) -> None:
        if session.sampler:
            session.sampler.free()
        self._speculation.leave(session)
        self._schedule.leave(session, self.steps)

    def _flush(self) -> None:
        if self._frames:
            self._send(*self._frames)
            self._frames.clear()
