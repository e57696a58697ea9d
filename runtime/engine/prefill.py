"""Reads long prompts beside running answers: in a KV cache of their own, in slices of time between the steps.

A few rows of a prompt cost far more in a step of answers than in a batch of a prompt alone, and many rows make a gap in
every answer. So a long prompt is read in a second context of the same model, with the same weights, many rows at a
time. It stands still while a step is computed. llama.cpp asks after every node of a graph whether to abort; when the
slice is over, the side thread does not answer before the next slice begins. So only one of the two contexts computes at
any time, with all threads, and the time that answers wait is chosen in seconds, however many rows that is
(`runtime/engine/pace.py`). The cells are then copied into the model's main cache, chunk by chunk, which takes a
five-hundredth of the time that computing them took.

The second cache takes memory that is set aside for the spill (`runtime/cache/spill.py`), and is freed when the engine
has nothing to do. Prompts are read in the steps themselves where there is no such memory, with a graphics card (which
asks nothing between nodes), and with recurrent models, whose steps cost the same for every row.
"""

from __future__ import annotations

import sys
import time
from array import array
from collections.abc import Callable
from dataclasses import replace
from threading import Semaphore, Thread
from typing import Any, NamedTuple

from runtime.cache.pool import CellPool, Sequence
from runtime.cache.spill import common_prefix
from runtime.engine.session import Session
from runtime.errors import LoadFailed
from runtime.llama.adapters import Adapters
from runtime.llama.context import ABORTED, OK, Context, ContextParams
from runtime.llama.library import library
from runtime.llama.model import LlamaModel
from runtime.messages import AdapterSet
from runtime.units import size_text

# A prompt with at most N pending tokens is read as soon in the steps themselves.
FEW_TOKENS = 16
# Rows of a chunk, at most and at least. From 128 on a row costs no less; with fewer rows each graph node ends sooner.
MOST_ROWS, LEAST_ROWS = 128, 32
# Tokens copied from cache to cache at once. To read one token, at most COPY_RATIO others are worth copying first.
COPY_TOKENS, COPY_RATIO = 512, 64
# The sequences of the second context: the prompt, and one for cells on their way to or from the main cache.
PROMPT, STAGING = 0, 1
# The second cache's size is a multiple of this, in tokens.
_TOKENS_STEP = 1024
# Seconds without further tries after the second context could not be made or failed.
_PAUSE = 60.0


class SlicedThread:
    """Runs one call at a time in a thread of its own, which advances only while `advance` waits for it.

    The call must ask `pause_or_abort` now and then.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        """Seconds between two calls of `pause_or_abort` at most, in the last call that ended."""
        self.result = OK
        self._call: Callable[[], int] | None = None
        self._start, self._stopped = Semaphore(0), Semaphore(0)
        self._until = self._last = self._peak = 0.0
        self._aborting = False
        self._thread = Thread(target=self._run, name="prefill", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a call has begun and not ended."""
        return self._call is not None

    def begin(self, call: Callable[[], int]) -> None:
        """Run `call` in the next slices; when it has ended, `result` is what it returned."""
        self._call, self._peak = call, 0.0

    def advance(self, seconds: float) -> bool:
        """Let the call go on for `seconds` (one graph node at least); True when it has ended."""
        self._until = time.perf_counter() + seconds
        self._start.release()
        self._stopped.acquire()
        return self._call is None

    def abort(self) -> None:
        """Make the call give up, and wait until it has."""
        self._aborting = True
        while self._call and not self.advance(0.0):
            pass
        self._aborting = False

    def close(self) -> None:
        """Abort the call and end the thread."""
        self.abort()
        self._start.release()
        self._thread.join()

    def pause_or_abort(self, _: Any = None) -> bool:
        """llama.cpp's abort callback, called after every graph node: whether to abort.

        When the slice would be over before another node as long as the longest one, it waits here for the next slice.
        """
        now = time.perf_counter()
        self._peak = max(self._peak, now - self._last)
        if now + max(self.longest, self._peak) > self._until and not self._aborting:
            self._stopped.release()
            self._start.acquire()
            now = time.perf_counter()
        self._last = now
        return self._aborting

    def _run(self) -> None:
        while True:
            self._start.acquire()
            if self._call is None:
                return
            self._last = time.perf_counter()
            self.result = self._call()
            self.longest, self._call = self._peak, None
            self._stopped.release()


class SidePrefill:
    """A second KV cache that reads one prompt at a time. Owned by the engine's thread, like the main cache."""

    def __init__(
        self,
        model: LlamaModel,
        context: Context,
        pool: CellPool,
        params: ContextParams,
        adapters: Adapters,
        short_context: int = 0,
    ) -> None:
        """`context` is the main one, made with `params`; the second one is made when it is needed.

        Where the main one is larger than `short_context`, the second one is so too: by the size of a context llama.cpp
        chooses between two sets of rotary factors.
        """
        self._model, self._main, self._pool, self._params = model, context, pool, params
        self._least = short_context + 1 if short_context < context.tokens else 1
        self._context: Context | None = None
        self._thread = SlicedThread()
        # llama.cpp keeps the bare pointer: this reference keeps the callback alive.
        self._callback = library().ggml_abort_callback(self._thread.pause_or_abort)
        self._tokens = array("i")  # the tokens in the second cache
        self._chunk = array("i")  # the tokens being computed there
        self._session: Session | None = None
        self._adapters = adapters
        self._key: AdapterSet = ()
        """The adapters with which the tokens in the second cache were computed."""
        self._rows = MOST_ROWS
        self._not_before = 0.0
        self._reason = ""
        self.bytes = 0
        """Memory of the second context now."""

    @staticmethod
    def hindrance(model: LlamaModel) -> str:
        """Why prompts of `model` can never be read like this; "" where they can."""
        if model.memory != "cells":
            return "a recurrent state cannot be copied in parts"
        if model.embeds:
            return "the model makes embeddings"
        if 0 < model.window < COPY_TOKENS:
            # Cells that the window at the end of a chunk does not cover would not be copied.
            return f"its window of {model.window} tokens is too small to copy them in parts"
        return "llama.cpp is built for a graphics card" if library().llama_supports_gpu_offload() else ""

    @property
    def obstacle(self) -> str:
        """Why prompts are not read like this now; "" where they are, as far as is known."""
        if not self.usable:
            return self._reason
        return "" if self._context else self._shortage(self._need(_TOKENS_STEP))

    @property
    def usable(self) -> bool:
        """Whether the second context can be made, as far as is known."""
        return time.monotonic() >= self._not_before

    @property
    def busy(self) -> bool:
        """Whether a chunk has begun and not ended."""
        return self._thread.busy

    def suits(self, session: Session) -> bool:
        """Whether the prompt of a running session is better read here than in the steps of answers."""
        if session.pending <= FEW_TOKENS or session.seq is None or not self.usable:
            return False
        here = self._tokens if session.adapters == self._key else array("i")
        missing = len(session.seq.tokens) - common_prefix(here, session.seq.tokens)
        return missing <= COPY_RATIO * session.pending

    def advance(self, session: Session, seconds: float) -> None:
        """Go on with the prompt of `session` for about `seconds`."""
        end = time.perf_counter() + seconds
        if self._session is not session:
            self.drop()
            self._session = session
            self._change_adapters(session.adapters)
        try:
            while self.usable and session.seq and session.pending > 1:
                if not self.busy and not self._prepare(session, session.seq):
                    return
                if self.busy:
                    if not self._thread.advance(end - time.perf_counter()):
                        return
                    self._finish_chunk(seconds)
                elif time.perf_counter() + self._thread.longest > end:
                    return
        except (LoadFailed, MemoryError) as error:
            self._give_up(str(error) or "no memory")

    def drop(self) -> None:
        """Abort the chunk that is being computed; those before it stay in the second cache."""
        self._thread.abort()
        if self._chunk and self._context:
            self._context.cut(PROMPT, len(self._tokens))
        self._chunk = array("i")

    def _change_adapters(self, wanted: AdapterSet) -> None:
        """Empty the second cache where its tokens were computed with other adapters."""
        if wanted != self._key:
            self._key = wanted
            del self._tokens[:]
            if self._context:
                self._context.cut(PROMPT, 0)

    def free(self) -> None:
        """Free the second context."""
        self.drop()
        if self._context:
            self._adapters.forget(self._context)
            self._context.free()
            self._context = None
        del self._tokens[:]
        self._pool.spill.take_back(self.bytes)
        self.bytes = 0

    def close(self) -> None:
        """Free the second context and end the thread."""
        self.free()
        self._thread.close()

    def _prepare(self, session: Session, seq: Sequence) -> bool:
        """Copy to the main cache, or copy from it, or begin a chunk; False where none of it can be done."""
        in_main = len(seq.tokens)
        in_side = min(common_prefix(self._tokens, session.tokens), len(session.tokens) - 1)
        if in_side > in_main:
            return self._hand_over(session, seq, min(in_side, in_main + COPY_TOKENS))
        context = self._context_for(len(session.tokens))
        if context is None:
            return False
        if len(self._tokens) > in_side:  # the rest belongs to another prompt
            context.cut(PROMPT, in_side)
            del self._tokens[in_side:]
        if in_side < in_main:
            return self._fetch(context, seq, min(in_main, in_side + COPY_TOKENS))
        self._chunk = session.tokens[in_main : min(in_main + self._rows, len(session.tokens) - 1)]
        rows = len(self._chunk)
        self._adapters.use(context, self._key)
        context.put_prompt(0, memoryview(self._chunk), in_main, PROMPT, 0)
        self._thread.begin(lambda: context.decode(rows))
        return True

    def _finish_chunk(self, seconds: float) -> None:
        """Record the chunk that was computed; the next one is smaller if a graph node took too much of the slice."""
        chunk, self._chunk = self._chunk, array("i")
        status = self._thread.result
        if status == OK:
            self._tokens.extend(chunk)
            if self._thread.longest > seconds / 3:
                self._rows = max(LEAST_ROWS, self._rows // 2)
            elif self._thread.longest < seconds / 8:
                self._rows = min(MOST_ROWS, self._rows * 2)
        elif status != ABORTED:
            self._give_up(f"llama.cpp could not compute this (status {status})")

    def _hand_over(self, session: Session, seq: Sequence, end: int) -> bool:
        """Copy cells of the prompt into the main cache, up to position `end`; False where it has no room now."""
        assert self._context
        start = len(seq.tokens)
        while self._pool.free < end - start and self._pool.evict():
            pass
        end = min(end, start + self._pool.free)
        staging = self._pool.vacant()
        if end == start or staging is None:
            return False
        main = _Cells(self._main, seq.number, staging.number)
        if not _copy_cells(_Cells(self._context, PROMPT, STAGING), main, start, end):
            return False
        self._pool.grow(seq, session.tokens[start:end])
        return True

    def _fetch(self, context: Context, seq: Sequence, end: int) -> bool:
        """Copy cells of the prompt from the main cache, up to position `end`; False where that is not possible now."""
        staging = self._pool.vacant()
        if staging is None:
            return False
        start = len(self._tokens)
        main = _Cells(self._main, seq.number, staging.number)
        if not _copy_cells(main, _Cells(context, PROMPT, STAGING), start, end):
            return False
        self._tokens.extend(seq.tokens[start:end])
        return True

    def _context_for(self, tokens: int) -> Context | None:
        """The second context, with room for `tokens`; None where there is no memory for it. Raises LoadFailed."""
        if self._context and self._context.tokens >= tokens:
            return self._context
        self.free()
        size = min(-(-max(tokens, self._least) // _TOKENS_STEP) * _TOKENS_STEP, self._main.tokens)
        need, spill = self._need(size), self._pool.spill
        if shortage := self._shortage(need):
            self._give_up(shortage)
            return None
        spill.lend(need)
        self.bytes = need
        params = replace(self._params, tokens=size, sequences=2, outputs=1, batch=MOST_ROWS)
        self._context = Context(self._model, params)
        self._context.set_abort_callback(self._callback)
        self.bytes = sum(self._context.buffers.values())
        spill.take_back(need - self.bytes)
        return self._context

    def _need(self, size: int) -> int:
        """Bytes that a second context with room for `size` tokens takes."""
        cache, compute = (self._main.buffers.get(kind, 0) for kind in ("KV", "compute"))
        return cache * size // self._main.tokens + compute * MOST_ROWS // self._main.batch_size

    def _shortage(self, need: int) -> str:
        limit = self._pool.spill.limit
        return f"{size_text(need)} are needed and {size_text(limit)} may be used" if need > limit else ""

    def _give_up(self, reason: str) -> None:
        """Leave prompts to the steps for a while."""
        self._reason = reason
        sys.stderr.write(f"long prompts are not read beside answers: {reason}\n")
        self.free()
        self._not_before = time.monotonic() + _PAUSE


class _Cells(NamedTuple):
    """A sequence of a context, and an empty one of the same context for cells on their way."""

    context: Context
    sequence: int
    staging: int


def _copy_cells(source: _Cells, target: _Cells, start: int, end: int) -> bool:
    """Copy positions `start` to `end` of one sequence to the end of another, in another context.

    llama.cpp saves and restores whole sequences only, so each side has a staging sequence that holds just these
    positions. Both are empty again afterwards. False, and nothing is copied, when the target has no room.
    """
    source.context.copy(source.sequence, source.staging, end, start)
    state = source.context.save(source.staging)
    source.context.cut(source.staging, 0)
    if not target.context.restore(target.staging, state):
        return False
    target.context.copy(target.staging, target.sequence, end, start)
    return target.context.cut(target.staging, 0)
