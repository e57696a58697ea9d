"""The engine: one loop that admits, batches, decodes, samples and emits, for all requests of a model together.

What is in a step is `runtime/engine/schedule.py`'s to say; here it is computed, a token is drawn for every answer in
it, and what may be shown goes out in one write.

Threads: `run` owns the context. `take` is called by the thread that reads the socket, and does what needs no context
there: templates, tokenizing, refusals. A cancel that comes while the prompt it belongs to is being computed aborts that
step.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from runtime import messages as m
from runtime.cache.pool import CellPool
from runtime.cache.spill import Spill
from runtime.engine.embedding import Embedder
from runtime.engine.huge_pages import Pages
from runtime.engine.pace import PATIENCE, Pace
from runtime.engine.prefill import Side
from runtime.engine.prompt import Prompter
from runtime.engine.schedule import Schedule, Stretch
from runtime.engine.session import Session, check_request, open_sessions
from runtime.errors import BadRequest, EngineError, QueueFull, Timeout
from runtime.llama.context import ABORTED, NO_ROOM, OK, POOLING_RANK, Context, ContextParams, sequences
from runtime.llama.model import Model
from runtime.llama.sampling import Sampler

_FAULTS = 3
_NOTHING: frozenset[int] = frozenset()


class LlamaEngine:
    """Answers with llama.cpp. `open`, then `run`; `take` from another thread."""

    def __init__(self, load: m.Load, send: Callable[..., None]) -> None:
        self._load = load
        self._send = send
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        self._frames: list[Any] = []
        self._plan: list[Stretch] = []
        self._computing = _NOTHING
        self._faults = 0
        self._queued = 0
        self._closing = False
        self._pages = Pages()
        self._calm = True
        self.step = 0

    # ---- what the worker calls

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self._queued or self._schedule.sessions or self._embedder.busy)

    @property
    def spilled(self) -> int:
        """Bytes of conversations kept outside the model's cache, and of a second cache."""
        return (self._pool.spill.used if self._pool.spill else 0) + (self._side.bytes if self._side else 0)

    def open(self) -> m.Ready:
        """Load the model and make the context; raises LoadFailed, BadRequest."""
        started = time.monotonic_ns()
        load, progress = self._load, _Progress(self._send)
        self._model = Model(Path(load.path), gpu_layers=load.gpu_layers, progress=progress)
        running, threads = load.cache_config.sequences, min(load.threads, usable_threads())
        total = sequences(self._model, running)
        shape = ContextParams(load.cache_config.context, total, running, threads, load.cache_config.kv_type)
        self._context = Context(self._model, shape)
        self._pool = CellPool(self._context.tokens, total, self._context)
        self._pool.memory = self._model.memory
        cache = self._context.buffers.get("KV", 0) + self._context.buffers.get("RS", 0)
        spill = load.spill if load.spill >= 0 else cache // 2
        self._pool.spill = Spill(self._context, spill, self._model.memory, self._model.window)
        self._pace = Pace(self._context.batch_size, load.gap)
        side = Side.possible(self._model)
        self._side = Side(self._model, self._context, self._pool, shape) if side else None
        self._schedule = Schedule(self._pool, self._pace, running, self._side)
        self._prompter = Prompter(self._model, self._context.tokens)
        self._embedder = Embedder(self._model, self._context, self._pool, self._frames.append)
        gc.freeze()
        return m.Ready(
            context=self._context.tokens,
            sequences=running,
            load_ns=time.monotonic_ns() - started,
            weights_bytes=self._model.buffers.get("model", self._model.size),
            cache_bytes=cache,
            compute_bytes=self._context.buffers.get("compute", 0) + self._context.buffers.get("output", 0),
        )

    def take(self, frame: Any) -> None:
        """Accept a frame: refuse it at once, or hand it to the loop ready to run."""
        try:
            match frame:
                case m.Submit():
                    self._inbox.put(self._prepared(frame))
                case m.Embed():
                    self._inbox.put(self._embedder.prepare(frame))
                case m.Rank():
                    self._inbox.put(self._embedder.prepare_ranking(frame))
                case m.Tokenize():
                    prompter = self._prompter
                    ids = prompter.text(frame.text or "") if frame.turns is None else prompter.chat(frame.turns)
                    self._send(m.Tokens(frame.id, ids.tolist()))
                case m.Cancel():
                    self._inbox.put(frame)
                    if frame.id in self._computing or frame.id == self._embedder.computing:
                        self._context.abort()
                case _:
                    self._inbox.put(frame)
        except EngineError as error:
            self._send(_failed(frame.id, error))

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
                answering = sum(session.pending == 1 for session in self._schedule.running)
                self._embedder.step(self._pace.budget(answering, 1, PATIENCE), self._schedule.committed())
                self.step += 1
            self._flush()
            if self._side:
                self._read_aside(self._side)
        if self._side:
            self._side.close()

    # ---- requests come in

    def _prepared(self, request: m.Submit) -> list[Session]:
        if self._queued + len(self._schedule.waiting) >= self._load.queue:
            raise QueueFull(f"{self._load.queue} requests wait for this model already", "try again later")
        if self._context.pooling == POOLING_RANK:
            raise BadRequest("this model ranks texts and cannot write", "ask it to rank (`/v1/rerank`)")
        if self._model.encoder:
            raise BadRequest("this model makes embeddings and cannot write", "ask for embeddings")
        check_request(request, self._model.vocabulary.size)
        prompt = self._prompter.prompt(request)
        stops = self._prompter.template.stops if request.turns is not None else ()
        sessions = open_sessions(request, prompt, stops)
        self._queued += 1
        return sessions

    def _drain(self) -> None:
        """Take what has come; wait for something when there is nothing else to do."""
        idle = not (self._schedule.running or self._schedule.waiting or self._embedder.busy)
        self._context.clear_abort()
        if idle and self._side:
            self._side.free()
        while idle and self._inbox.empty() and self._pages.gather():
            pass
        while idle or not self._inbox.empty():
            idle = False
            item = self._inbox.get()
            match item:
                case list():
                    self._queued -= 1
                    self._schedule.waiting.extend(item)
                case m.Cancel():
                    self._cancel(item.id)
                case m.Shutdown():
                    self._closing = True
                case _:
                    self._embedder.add(item)

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
            for session in self._schedule.admit(self._embedder.wanted):
                self._begin(session)
                self._embedder.overtake()

    def _begin(self, session: Session) -> None:
        if session.sampler:  # it was here before, and had to make room
            return
        cached = len(session.seq.tokens) if session.seq else 0
        session.sampler = Sampler(self._model.vocabulary, session.request.sampling, session.index, self._context.tokens)
        session.sampler.read(session.tokens)
        session.cached = cached
        session.admitted_ns = time.monotonic_ns()
        if session.index == 0:
            self._frames.append(m.Started(session.id, session.prompt_tokens, cached, session.truncated))
        if session.request.echo:
            text = b"".join(map(self._model.vocabulary.piece, session.tokens)).decode(errors="replace")
            self._frames.append(m.Delta(session.id, text, 0, session.index))

    # ---- one step

    def _fill(self) -> int:
        """Put the rows of the next step into the batch; how many there are."""
        context = self._context
        self._plan, ending = self._schedule.plan()
        for session in ending:
            self._finish(session, "length")
        row = 0
        for session, start, count in self._plan:
            assert session.seq
            if count == 1 and session.pending == 1:
                context.put_token(row, session.tokens[start], start, session.seq.number)
            else:
                stretch = memoryview(session.tokens)[start : start + count]
                context.put_prompt(row, stretch, start, session.seq.number, int(count == session.pending))
            row += count
        # Where a step cannot be taken back it is not aborted at the cost of others in it.
        if row > len(self._plan) and (self._model.memory == "cells" or len(self._plan) == 1):
            self._computing = frozenset(session.id for session, _, count in self._plan if count > 1)
        return row

    def _compute(self, rows: int) -> None:
        started = time.perf_counter()
        status = self._context.decode(rows)
        seconds = time.perf_counter() - started
        self.step += 1
        self._computing = _NOTHING
        if status != OK:
            self._recover(status)
            return
        self._faults = 0
        prompts = sum(count for _, _, count in self._plan if count > 1) if rows > len(self._plan) else 0
        self._pace.note(rows - prompts, prompts, seconds, calm=self._calm)
        row = 0
        for session, start, count in self._plan:
            assert session.seq
            self._pool.grow(session.seq, session.tokens[start : start + count])
            row += count
            if session.marks and session.marks[0] == len(session.seq.tokens):
                self._pool.mark(session.seq)
                session.marks.pop(0)
            if not session.pending:
                self._advance(session, row - 1)

    def _read_aside(self, side: Side) -> None:
        """Between two steps: go on with a long prompt."""
        if self._schedule.aside:
            side.turn(self._schedule.aside, self._schedule.turn())
            self.step += 1
            self._calm = False
        else:
            self._calm = True
            if side.reading:
                side.drop()

    def _recover(self, status: int) -> None:
        """A step that did not happen: an abort, no room after all, or an error of the engine."""
        for session, start, _ in self._plan:
            if session.seq and not self._context.cut(session.seq.number, start):
                self._pool.clear(session.seq)  # a state that cannot go back: from the last checkpoint on
                self._schedule.set_back(session)
        if status == ABORTED:
            return
        running = self._schedule.running
        if status == NO_ROOM and (self._pool.evict() or len(running) > 1):
            if not self._pool.free:
                self._schedule.set_back(running[-1])
            return
        self._faults += 1
        for session, _, _ in self._plan:
            self._fail(session, EngineError(f"llama.cpp could not compute this step (status {status})", "try again"))
        if self._faults >= _FAULTS:
            raise RuntimeError(f"{_FAULTS} steps in a row failed with status {status}")

    def _advance(self, session: Session, row: int) -> None:
        """Draw the next token of an answer from the logits of `row`."""
        if session.answered >= session.max_tokens:
            self._finish(session, "length")
            return
        assert session.sampler
        token = session.sampler.sample(self._context.handle, row)
        if not session.first_ns:
            session.first_ns = time.monotonic_ns()
        vocabulary = self._model.vocabulary
        if vocabulary.ends(token):
            self._finish(session, "stop")
            return
        logprob = None
        if session.request.logprobs >= 0:
            from runtime.llama.logprobs import token_logprob

            logprob = token_logprob(vocabulary, self._context.logits(row), token, session.request.logprobs)
        delta = session.say(token, vocabulary.piece(token), logprob)
        if delta:
            self._frames.append(delta)
        if session.text.stop:
            self._finish(session, "stop")
        elif session.answered >= session.max_tokens:
            self._finish(session, "length")

    # ---- answers end

    def _finish(self, session: Session, reason: str) -> None:
        if rest := session.rest():
            self._frames.append(rest)
        self._frames.append(session.finished(reason))
        self._release(session)

    def _fail(self, session: Session, error: EngineError) -> None:
        self._frames.append(_failed(session.id, error))
        for other in [other for other in self._schedule.sessions if other.id == session.id]:
            self._release(other)

    def _release(self, session: Session) -> None:
        if session.sampler:
            session.sampler.free()
        self._schedule.leave(session, self.step)

    def _flush(self) -> None:
        if self._frames:
            self._send(*self._frames)
            self._frames.clear()


def usable_threads() -> int:
    """Processors that this process may run on; llama.cpp hangs with more threads than that."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Progress:
    """Reports a load's progress, but not a hundred times a second."""

    def __init__(self, send: Callable[..., None]) -> None:
        self._send = send
        self._last = 0.0

    def __call__(self, fraction: float) -> None:
        now = time.monotonic()
        if now - self._last > 0.1:
            self._last = now
            self._send(m.Loading(fraction))


def _failed(request: int, error: EngineError) -> m.Failed:
    return m.Failed(request, error.code, str(error), error.hint)
