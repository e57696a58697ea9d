"""Reads long prompts beside running answers: in a cache of its own, in turns with their steps.

Few rows of a prompt in a step of answers cost far more than among their like, and many are a gap in every answer. So a
long prompt is read in a second context of the same model, with the same weights, many rows at a time. It stands still
while a step is computed: llama.cpp asks after every operation of a graph whether to give up, and for a reader whose
turn is over the answer waits until the next one. So one of the two computes at any time, with all threads, and what an
answer waits for is said in seconds, however many rows that is (`runtime/engine/pace.py`). What was read is copied into
the model's cache, chunk by chunk: that takes a five-hundredth of the time that reading it took.

The second cache is made in memory that is set aside for spilled conversations (`runtime/cache/spill.py`), and freed
when the engine has nothing to do. Without such memory, or with a graphics card (which asks nothing between operations),
prompts are read in the steps themselves; so they are by recurrent models, whose steps cost the same for every row.
"""

from __future__ import annotations

import sys
import time
from array import array
from collections.abc import Callable
from dataclasses import replace
from threading import Semaphore, Thread
from typing import Any

from runtime.cache.pool import CellPool, Sequence
from runtime.cache.spill import common_prefix
from runtime.engine.session import Session
from runtime.errors import LoadFailed
from runtime.llama.context import ABORTED, OK, Context, ContextParams
from runtime.llama.library import library
from runtime.llama.model import Model

# Fewer tokens are read as soon in the steps themselves.
WORTH = 16
# Rows of a chunk. From 128 on a row costs no less, and the fewer they are the sooner an operation ends.
ROWS, FEWEST = 128, 32
# Tokens copied at once from the model's cache, and how many of them a token to be read is worth.
STRETCH, WORTH_COPYING = 512, 64
_GRAIN = 1024
_PAUSE = 60.0


class Turns:
    """Runs calls in a thread of its own, which goes on only while `go` waits for it."""

    def __init__(self) -> None:
        self.longest = 0.0
        """Seconds between two questions of the last call at most."""
        self.result = OK
        self._call: Callable[[], int] | None = None
        self._go, self._back = Semaphore(0), Semaphore(0)
        self._until = self._last = self._peak = 0.0
        self._ending = False
        self._thread = Thread(target=self._run, name="side", daemon=True)
        self._thread.start()

    @property
    def under_way(self) -> bool:
        """Whether a call has begun and not ended."""
        return self._call is not None

    def begin(self, call: Callable[[], int]) -> None:
        """Have `call` run by the next turns; when it has ended, `result` is what it returned."""
        self._call, self._peak = call, 0.0

    def go(self, seconds: float) -> bool:
        """Let the call go on for `seconds` (one operation at least); whether it has ended."""
        self._until = time.perf_counter() + seconds
        self._go.release()
        self._back.acquire()
        return self._call is None

    def end(self) -> None:
        """Make the call that is under way give up."""
        self._ending = True
        while self._call and not self.go(0.0):
            pass
        self._ending = False

    def close(self) -> None:
        """End the thread too."""
        self.end()
        self._go.release()
        self._thread.join()

    def question(self, _: Any = None) -> bool:
        """llama.cpp's, between two operations: whether to give up. Waits for the next turn when this one is over."""
        now = time.perf_counter()
        self._peak = max(self._peak, now - self._last)
        if now + max(self.longest, self._peak) > self._until and not self._ending:
            self._back.release()
            self._go.acquire()
            now = time.perf_counter()
        self._last = now
        return self._ending

    def _run(self) -> None:
        while True:
            self._go.acquire()
            if self._call is None:
                return
            self._last = time.perf_counter()
            self.result = self._call()
            self.longest, self._call = self._peak, None
            self._back.release()


class Side:
    """A second cache for one prompt at a time, and what is in it. Owned by the engine's thread, like the first."""

    def __init__(self, model: Model, context: Context, pool: CellPool, params: ContextParams) -> None:
        """`context`, of `params`, is the one whose prompts are read; nothing is made before that is needed."""
        self._model, self._main, self._pool, self._params = model, context, pool, params
        self._context: Context | None = None
        self._turns = Turns()
        self._question = library().ggml_abort_callback(self._turns.question)
        self._held = array("i")
        self._chunk = array("i")
        self._session: Session | None = None
        self._rows = ROWS
        self._not_before = 0.0
        self.bytes = 0
        """Memory that it takes now."""

    @staticmethod
    def possible(model: Model) -> bool:
        """Whether prompts of `model` can be read like this."""
        # Of a window no cell is copied that the end of its chunk does not see.
        plain = model.memory == "cells" and not model.embeds and (not model.window or model.window >= STRETCH)
        return plain and not library().llama_supports_gpu_offload()

    @property
    def usable(self) -> bool:
        """Whether there is memory for it, as far as is known."""
        return time.monotonic() >= self._not_before

    @property
    def reading(self) -> bool:
        """Whether a chunk is under way."""
        return self._turns.under_way

    def suits(self, session: Session) -> bool:
        """Whether the prompt of `session`, which runs, is better read here than in the steps of answers."""
        if session.pending <= WORTH or session.seq is None or not self.usable:
            return False
        new = len(session.seq.tokens) - common_prefix(self._held, session.seq.tokens)
        return new <= WORTH_COPYING * session.pending

    def turn(self, session: Session, seconds: float) -> None:
        """Go on with the prompt of `session` for about `seconds`."""
        end = time.perf_counter() + seconds
        if self._session is not session:
            self.drop()
            self._session = session
        try:
            while self.usable and session.seq and session.pending > 1:
                if not self.reading and not self._prepare(session, session.seq):
                    return
                if self.reading:
                    if not self._turns.go(end - time.perf_counter()):
                        return
                    self._take(seconds)
                elif time.perf_counter() + self._turns.longest > end:
                    return
        except (LoadFailed, MemoryError) as error:
            self._give_up(str(error) or "no memory")

    def drop(self) -> None:
        """Forget the chunk that is being read; what was read before it stays of use."""
        self._turns.end()
        if self._chunk and self._context:
            self._context.cut(0, len(self._held))
        self._chunk = array("i")

    def free(self) -> None:
        """Give the memory back."""
        self.drop()
        if self._context:
            self._context.free()
            self._context = None
        del self._held[:]
        if self._pool.spill:
            self._pool.spill.limit += self.bytes
        self.bytes = 0

    def close(self) -> None:
        """End for good."""
        self.free()
        self._turns.close()

    def _prepare(self, session: Session, seq: Sequence) -> bool:
        """Copy what one cache lacks of the other, or else begin the next chunk; False where nothing can be done."""
        there = len(seq.tokens)
        ready = min(common_prefix(self._held, session.tokens), len(session.tokens) - 1)
        if ready > there:
            return self._hand_over(session, seq, min(ready, there + STRETCH))
        context = self._made(len(session.tokens))
        if context is None:
            return False
        if len(self._held) > ready:
            context.cut(0, ready)
            del self._held[ready:]
        if ready < there:
            return self._fetch(context, seq, min(there, ready + STRETCH))
        self._chunk = session.tokens[there : min(there + self._rows, len(session.tokens) - 1)]
        rows = len(self._chunk)
        context.put_prompt(0, memoryview(self._chunk), there, 0, 0)
        self._turns.begin(lambda: context.decode(rows))
        return True

    def _take(self, seconds: float) -> None:
        """Note the chunk that was read; the next one is smaller where an operation took too much of a turn."""
        chunk, self._chunk = self._chunk, array("i")
        status = self._turns.result
        if status == OK:
            self._held.extend(chunk)
            if self._turns.longest > seconds / 3:
                self._rows = max(FEWEST, self._rows // 2)
            elif self._turns.longest < seconds / 8:
                self._rows = min(ROWS, self._rows * 2)
        elif status != ABORTED:
            self._give_up(f"llama.cpp could not compute this (status {status})")

    def _hand_over(self, session: Session, seq: Sequence, end: int) -> bool:
        """Copy what was read into the model's cache, up to position `end`; False where that has no room now."""
        assert self._context
        start = len(seq.tokens)
        while self._pool.free < end - start and self._pool.evict():
            pass
        end = min(end, start + self._pool.free)
        visit = self._pool.vacant()
        if end == start or visit is None:
            return False
        self._context.copy(0, 1, end, start)
        if not _move(self._context, 1, self._main, visit.number, seq.number, start, end):
            return False
        self._pool.grow(seq, session.tokens[start:end])
        return True

    def _fetch(self, context: Context, seq: Sequence, end: int) -> bool:
        """Copy what the model's cache holds of a prompt, up to position `end`, to go on from there."""
        visit = self._pool.vacant()
        if visit is None:
            return False
        start = len(self._held)
        self._main.copy(seq.number, visit.number, end, start)
        if not _move(self._main, visit.number, context, 1, 0, start, end):
            return False
        self._held.extend(seq.tokens[start:end])
        return True

    def _made(self, tokens: int) -> Context | None:
        """The second context, with room for `tokens`; None where there is no memory for it. Raises LoadFailed."""
        if self._context and self._context.tokens >= tokens:
            return self._context
        self.free()
        size = min(-(-tokens // _GRAIN) * _GRAIN, self._main.tokens)
        cache, compute = (self._main.buffers.get(kind, 0) for kind in ("KV", "compute"))
        need = cache * size // self._main.tokens + compute * ROWS // self._main.batch_size
        spill = self._pool.spill
        if spill is None or not spill.lend(need):
            self._give_up(f"{need / 1e6:,.0f} MB are needed and {(spill.limit if spill else 0) / 1e6:,.0f} may be used")
            return None
        self.bytes = need
        self._context = Context(self._model, replace(self._params, tokens=size, sequences=2, outputs=1, batch=ROWS))
        self._context.set_abort_callback(self._question)
        self.bytes = sum(self._context.buffers.values())
        spill.limit += need - self.bytes
        return self._context

    def _give_up(self, reason: str) -> None:
        """Leave prompts to the steps for a while."""
        sys.stderr.write(f"long prompts are not read beside answers: {reason}\n")
        self.free()
        self._not_before = time.monotonic() + _PAUSE


def _move(source: Context, number: int, target: Context, visit: int, into: int, start: int, end: int) -> bool:
    """Move all that sequence `number` of `source` holds, `start` to `end`, to the end of `into` in `target`.

    Sequence `visit` there is empty before and after; False, and nothing is moved, when there is no room.
    """
    state = source.save(number)
    source.cut(number, 0)
    if not target.restore(visit, state):
        return False
    target.copy(visit, into, end, start)
    return target.cut(visit, 0)
