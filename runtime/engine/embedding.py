"""Vectors of texts, between the steps of answers: pooled as the model says, normalised, several texts per batch.

An encoder (BERT and its kin) reads a text forwards and backwards, so it must fit one batch, and short ones go together.
A causal model reads several texts in stretches like prompts, as much in a step as the pace allows beside running
answers; its vector is that of the last token, or the mean of all, summed up over the stretches.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from runtime import messages as m
from runtime.cache.pool import CellPool, Sequence
from runtime.engine.ranking import Ranker
from runtime.errors import BadRequest, EngineError, PromptTooLong, QueueFull
from runtime.llama.context import ABORTED, NO_ROOM, OK, POOLING_LAST, POOLING_MEAN, POOLING_RANK, Context
from runtime.llama.model import Model

# Rows that an encoder computes at once: more of them spend more on rows of other texts than they save.
PACK = 512
# Answers that may begin while the first text in line waits for room; then those that are being written end first.
PATIENCE = 8


@dataclass(eq=False)
class Reading:
    """An input of a causal model while it is read: `vector` is the sum of those of its tokens, if that is asked for."""

    ids: array[int]
    seq: Sequence
    vector: Any = None

    @property
    def left(self) -> int:
        """Tokens still to be read."""
        return len(self.ids) - len(self.seq.tokens)


class Job:
    """The inputs of one request, the vectors so far, what is being read, and how many answers began before that."""

    def __init__(self, request: int, inputs: list[array[int]], query: str = "") -> None:
        self.id = request
        self.query = query
        self.inputs = inputs
        self.vectors: list[bytes] = []
        self.readings: list[Reading] = []
        self.overtaken = 0
        self.tokens = sum(map(len, inputs))


class Embedder:
    """Computes embeddings on the engine's context; `prepare` may be called from any thread, the rest from the loop."""

    def __init__(self, model: Model, context: Context, pool: CellPool, emit: Callable[[Any], None]) -> None:
        self._model = model
        self._vocabulary = model.vocabulary
        self._context = context
        self._pool = pool
        self._emit = emit
        self._jobs: deque[Job] = deque()
        self._ranks = context.pooling == POOLING_RANK
        self.limit = min(context.batch_size, model.n_ctx_train) if model.encoder else context.tokens - 1
        self._ranker = Ranker(model, context.pooling, self.limit)
        self.computing = 0
        """The request that is being computed, which a cancel may abort."""

    @property
    def busy(self) -> bool:
        """Whether there is something to compute."""
        return bool(self._jobs)

    @property
    def patient(self) -> bool:
        """Whether answers may begin before the text that is first in line."""
        return not self._jobs or self._jobs[0].overtaken < PATIENCE

    @property
    def wanted(self) -> int:
        """Cells that what is being read will still take."""
        return sum(reading.left for job in self._jobs for reading in job.readings)

    def overtake(self) -> None:
        """An answer has begun."""
        if self._jobs and not self._jobs[0].readings:
            self._jobs[0].overtaken += 1

    def prepare(self, request: m.Embed) -> Job:
        """Tokens of the inputs; PromptTooLong for one too long that may not be cut, BadRequest for none at all."""
        if self._ranks:
            raise BadRequest("this model ranks texts and has no embeddings", "ask it to rank (`/v1/rerank`)")
        return Job(request.id, [self._tokens(text, request.truncate) for text in request.inputs])

    def prepare_ranking(self, request: m.Rank) -> Job:
        """Tokens of the question with each text; raises BadRequest where the model does not rank, PromptTooLong."""
        return Job(request.id, self._ranker.inputs(request.query, request.documents), request.query)

    def _tokens(self, text: str | list[int], truncate: bool) -> array[int]:
        ids = self._vocabulary.tokenize(text, special=False, add=True) if isinstance(text, str) else self._checked(text)
        if not ids:
            raise BadRequest("an input is empty", "send some text")
        if len(ids) > self.limit and not truncate:
            raise PromptTooLong(f"an input has {len(ids):,} tokens and the model reads {self.limit:,}", "shorten it")
        if len(ids) <= self.limit:
            return ids
        # What closes a text ([SEP], an end token) is read at the end of a shortened one too.
        closed = isinstance(text, str) and (self._model.encoder or self._vocabulary.adds_eos)
        return ids[: self.limit - 1] + ids[-1:] if closed else ids[: self.limit]

    def _checked(self, ids: list[int]) -> array[int]:
        for token in ids:
            if not 0 <= token < self._vocabulary.size:
                raise BadRequest(f"an input has token {token}, and the vocabulary ends at {self._vocabulary.size - 1}")
        return array("i", ids)

    def add(self, job: Job) -> None:
        """Put a prepared request in line."""
        self._jobs.append(job)
        self._complete()

    def cancel(self, request: int) -> None:
        """Forget a request."""
        for job in [job for job in self._jobs if job.id == request]:
            self._leave(job)
            self._emit(m.Finished(request, "cancelled", 0, 0))

    def step(self, rows: int, promised: int) -> None:
        """Compute a batch of the first request, of about `rows` tokens; `promised` cells of the pool are for others."""
        job = self._jobs[0]
        self.computing = job.id
        try:
            if self._model.encoder:
                job.vectors += self._encode(job)
            elif job.readings or self._begin(job, promised):
                self._read(job, rows)
        except EngineError as error:
            self._leave(job)
            self._emit(m.Failed(job.id, error.code, str(error), error.hint))
        finally:
            self.computing = 0
        self._complete()

    def _complete(self) -> None:
        while self._jobs and len(self._jobs[0].vectors) == len(self._jobs[0].inputs):
            job = self._jobs.popleft()
            self._emit(m.Vectors(job.id, job.vectors, job.tokens))

    def _leave(self, job: Job) -> None:
        self._jobs.remove(job)
        self._put_back(job)

    def _put_back(self, job: Job) -> None:
        """Give back the sequences of what is being read, which is read anew if the request stays."""
        for reading in job.readings:
            self._pool.clear(reading.seq)
            reading.seq.busy = False
        job.readings = []

    def _encode(self, job: Job) -> list[bytes]:
        """As many inputs as make a good batch, each a sequence of its own: every row looks at all the others."""
        row = 0
        batch: list[array[int]] = []
        for ids in job.inputs[len(job.vectors) :]:
            if batch and (
                row + len(ids) > min(PACK, self._context.batch_size) or len(batch) == len(self._pool.sequences)
            ):
                break
            self._context.put_prompt(row, memoryview(ids), 0, len(batch), len(ids))
            batch.append(ids)
            row += len(ids)
        status = self._context.decode(row, self._ranker.vectors(batch, job.query))
        if status == ABORTED:
            return []
        _check(status)
        return [self._result(self._context.pooled(number)) for number in range(len(batch))]

    def _begin(self, job: Job, promised: int) -> bool:
        """Take sequences for the next inputs, as many as there is room for; False to wait for answers to end."""
        most = len(self._pool.sequences) if self._model.embeds else 1 + len(self._pool.sequences) // 4
        for ids in job.inputs[len(job.vectors) :][:most]:
            promised += len(ids)
            if promised > self._pool.cells:
                break
            while self._pool.free < promised - self._pool.held_by_busy and self._pool.evict():
                pass
            seq = self._pool.start(None, 0)
            if seq is None:
                break
            job.readings.append(Reading(ids, seq))
            job.overtaken = 0
        return bool(job.readings)

    def _read(self, job: Job, rows: int) -> None:
        """Go on with what is being read. The last token of a text knows all of it, so that its vector is enough, and
        the others go through like a prompt; else every token's is needed."""
        last = self._context.pooling in (POOLING_LAST, POOLING_RANK)
        heads = [(reading, reading.left - 1) for reading in job.readings if reading.left > 1] if last else []
        wanted = not heads
        if wanted:
            heads = [(reading, reading.left) for reading in job.readings if reading.left]
            rows = max(1, min(rows, self._context.outputs)) if not last else len(heads)
        plan, row = [], 0
        for reading, left in heads:
            if count := min(left, rows - row):
                start = len(reading.seq.tokens)
                stretch = reading.ids[start : start + count]
                self._context.put_prompt(row, memoryview(stretch), start, reading.seq.number, count if wanted else 0)
                plan.append((reading, stretch))
                row += count
        if not self._decoded(job, row, wanted):
            return
        for reading, stretch in plan:
            if wanted:
                self._take(reading, len(stretch))
            self._pool.grow(reading.seq, stretch)
        if not any(reading.left for reading in job.readings):
            job.vectors += [self._result(reading.vector) for reading in job.readings]
            self._put_back(job)

    def _decoded(self, job: Job, rows: int, wanted: bool) -> bool:
        """Compute `rows`; False where that is to be tried again. Raises EngineError."""
        self._context.embed_mode(wanted)
        status = self._context.decode(rows)
        self._context.embed_mode(False)
        if status == OK:
            return True
        for reading in job.readings:
            if not self._context.cut(reading.seq.number, len(reading.seq.tokens)):
                self._put_back(job)
                break
        if status == NO_ROOM and not self._pool.evict():
            raise QueueFull("the answers that are being written leave no room for an embedding", "try again later")
        if status not in (NO_ROOM, ABORTED):
            _check(status)
        return False

    def _take(self, reading: Reading, rows: int) -> None:
        """Add what llama.cpp has pooled of a stretch of `rows` tokens to the vector of the whole."""
        vector = self._context.pooled(reading.seq.number)
        if self._context.pooling == POOLING_MEAN:
            part = vector * rows  # all that counts in the end is its direction
            reading.vector = part if reading.vector is None else reading.vector + part
        elif reading.vector is None or self._context.pooling in (POOLING_LAST, POOLING_RANK):
            reading.vector = vector.copy()

    def _result(self, vector: Any) -> bytes:
        """A vector's direction; of a ranking, the first number is the score."""
        score: bytes = vector[:1].astype("<f4").tobytes()
        return score if self._ranks else _unit(vector)


def _check(status: int) -> None:
    if status != OK:
        raise EngineError(f"llama.cpp could not compute this embedding (status {status})", "try again")


def _unit(vector: Any) -> bytes:
    """Its direction, as little-endian float32; a vector of zeros stays one."""
    import numpy as np  # a worker that only writes starts faster without

    length = float(np.linalg.norm(vector.astype(np.float64)))
    unit: bytes = (vector / np.float32(length or 1.0)).astype("<f4").tobytes()
    return unit
