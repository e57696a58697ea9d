"""Embeddings of texts, computed between the steps of answers: pooled as the model says, several texts in a batch.

An encoder (BERT and its kin) reads a text forwards and backwards, so a text must fit one batch; short ones share it.
A causal model reads several texts in chunks like prompts, as many rows in a step as the pace allows beside running
answers. Its vector is the last token's, or the mean of all tokens' vectors, summed up over the chunks.
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
from runtime.llama.model import LlamaModel

# Rows that an encoder computes at once. Attention spans the whole batch, so more rows cost more than they save.
ENCODER_ROWS = 512
# Answers that may begin while the first request waits for room. After these, no answer begins until it has room.
MAX_OVERTAKING = 8


@dataclass(eq=False)
class Reading:
    """An input of a causal model while it is read.

    `vector` is float32 `(n_embd,)`: the last token's, or the sum over the tokens so far for a mean.
    """

    ids: array[int]
    seq: Sequence
    vector: Any = None

    @property
    def left(self) -> int:
        """Tokens not in the KV cache yet."""
        return len(self.ids) - len(self.seq.tokens)


class EmbedJob:
    """One request: its `inputs`, the `vectors` so far (float32 bytes each), and the inputs that are being read.

    `overtaken` counts the answers that began while it waited for room; `query` is a ranking's question.
    """

    def __init__(self, request: int, inputs: list[array[int]], query: str = "") -> None:
        """Raises BadRequest for an input of no tokens, for which llama.cpp computes no vector."""
        if not all(inputs):
            raise BadRequest("an input is empty", "send some text")
        self.id = request
        self.query = query
        self.inputs = inputs
        self.vectors: list[bytes] = []
        self.readings: list[Reading] = []
        self.overtaken = 0
        self.tokens = sum(map(len, inputs))


class Embedder:
    """Computes embeddings on the engine's context. `prepare` may be called from any thread, the rest from the loop.

    `limit` is the number of tokens that an input may have.
    """

    def __init__(self, model: LlamaModel, context: Context, pool: CellPool, emit: Callable[[Any], None]) -> None:
        self._model = model
        self._vocabulary = model.vocabulary
        self._context = context
        self._pool = pool
        self._emit = emit
        self._jobs: deque[EmbedJob] = deque()
        self._ranks = context.pooling == POOLING_RANK
        self.limit = min(context.batch_size, model.n_ctx_train) if model.encoder else context.tokens - 1
        self._ranker = Ranker(model, context.pooling, self.limit)
        self.computing = 0
        """The id of the request that is being computed, 0 for none; a cancel aborts its step."""

    @property
    def busy(self) -> bool:
        """Whether there is something to compute."""
        return bool(self._jobs)

    @property
    def patient(self) -> bool:
        """Whether answers may begin before the first request here."""
        return not self._jobs or self._jobs[0].overtaken < MAX_OVERTAKING

    @property
    def pending(self) -> int:
        """Cells that the inputs being read will still take."""
        return sum(reading.left for job in self._jobs for reading in job.readings)

    def give_way(self) -> bool:
        """Free the cells of inputs that are being read, which are read anew later; False where there are none."""
        holding = [job for job in self._jobs if any(reading.seq.tokens for reading in job.readings)]
        for job in holding:
            self._put_back(job)
        return bool(holding)

    def overtake(self) -> None:
        """Count an answer that has begun while the first request waits."""
        if self._jobs and not self._jobs[0].readings:
            self._jobs[0].overtaken += 1

    def prepare(self, request: m.Embed) -> EmbedJob:
        """Tokenize the inputs.

        Raises PromptTooLong for an input that is too long and may not be cut, BadRequest for an empty one, and where
        the model ranks.
        """
        if self._ranks:
            raise BadRequest("this model ranks texts and has no embeddings", "ask it to rank (`/v1/rerank`)")
        return EmbedJob(request.id, [self._tokens(text, request.truncate) for text in request.inputs])

    def prepare_ranking(self, request: m.Rank) -> EmbedJob:
        """Tokenize the query with each document; raises BadRequest where the model does not rank, PromptTooLong."""
        return EmbedJob(request.id, self._ranker.inputs(request.query, request.documents), request.query)

    def _tokens(self, text: str | list[int], truncate: bool) -> array[int]:
        ids = self._vocabulary.tokenize(text, special=False, add=True) if isinstance(text, str) else self._checked(text)
        if len(ids) > self.limit and not truncate:
            raise PromptTooLong(f"an input has {len(ids):,} tokens and the model reads {self.limit:,}", "shorten it")
        if len(ids) <= self.limit:
            return ids
        # The last token ([SEP], an end token) closes a shortened text too.
        closed = isinstance(text, str) and (self._model.encoder or self._vocabulary.added("eos"))
        return ids[: self.limit - 1] + ids[-1:] if closed else ids[: self.limit]

    def _checked(self, ids: list[int]) -> array[int]:
        for token in ids:
            if not 0 <= token < self._vocabulary.size:
                raise BadRequest(
                    f"an input has token {token}, and the vocabulary ends at {self._vocabulary.size - 1}",
                    "send token ids of this model, not of another one",
                    "input",
                )
        return array("i", ids)

    def add(self, job: EmbedJob) -> None:
        """Append a prepared request to the queue."""
        self._jobs.append(job)
        self._complete()

    def cancel(self, request: int) -> None:
        """Forget a request."""
        for job in [job for job in self._jobs if job.id == request]:
            self._leave(job)
            self._emit(m.Finished(request, "cancelled", 0, 0))

    def step(self, rows: int, promised: int) -> None:
        """Compute a batch of the first request, of about `rows` tokens; `promised` cells belong to answers."""
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

    def _leave(self, job: EmbedJob) -> None:
        self._jobs.remove(job)
        self._put_back(job)

    def _put_back(self, job: EmbedJob) -> None:
        """Free the sequences of the inputs being read. They are read anew if the request stays."""
        for reading in job.readings:
            self._pool.clear(reading.seq)
            reading.seq.busy = False
        job.readings = []

    def _encode(self, job: EmbedJob) -> list[bytes]:
        """Compute as many inputs as make a good batch, each a sequence of its own; their vectors."""
        row = 0
        batch: list[array[int]] = []
        for ids in job.inputs[len(job.vectors) :]:
            if batch and (
                row + len(ids) > min(ENCODER_ROWS, self._context.batch_size) or len(batch) == len(self._pool.sequences)
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

    def _begin(self, job: EmbedJob, promised: int) -> bool:
        """Give sequences to the next inputs, as many as there is room for; False where answers have to end first."""
        # A model that writes keeps most sequences for its answers.
        most = len(self._pool.sequences) if self._model.embeds else 1 + len(self._pool.sequences) // 4
        for ids in job.inputs[len(job.vectors) :][:most]:
            promised += len(ids)
            if promised > self._pool.cells:
                break
            while self._pool.free < promised - self._pool.busy_cells and self._pool.evict():
                pass
            seq = self._pool.start(None, 0)
            if seq is None:
                break
            job.readings.append(Reading(ids, seq))
            job.overtaken = 0
        return bool(job.readings)

    def _read(self, job: EmbedJob, rows: int) -> None:
        """Compute the next chunks of the inputs being read.

        With pooling by the last token, only that token's vector is needed: the others are computed first, like a
        prompt, and the last tokens of all inputs then make one batch. Other pooling needs the vector of every token.
        """
        by_last_token = self._context.pooling in (POOLING_LAST, POOLING_RANK)
        pending = [(reading, reading.left - 1) for reading in job.readings if reading.left > 1] if by_last_token else []
        wanted = not pending
        if wanted:
            pending = [(reading, reading.left) for reading in job.readings if reading.left]
            rows = max(1, min(rows, self._context.outputs)) if not by_last_token else len(pending)
        chunks, row = [], 0
        for reading, left in pending:
            if count := min(left, rows - row):
                start = len(reading.seq.tokens)
                chunk = reading.ids[start : start + count]
                self._context.put_prompt(row, memoryview(chunk), start, reading.seq.number, count if wanted else 0)
                chunks.append((reading, chunk))
                row += count
        if not self._decode(job, row, wanted):
            return
        for reading, chunk in chunks:
            if wanted:
                self._accumulate(reading, len(chunk))
            self._pool.grow(reading.seq, chunk)
        if not any(reading.left for reading in job.readings):
            job.vectors += [self._result(reading.vector) for reading in job.readings]
            self._put_back(job)

    def _decode(self, job: EmbedJob, rows: int, wanted: bool) -> bool:
        """Compute `rows` rows; False where they are to be tried again. Raises EngineError."""
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

    def _accumulate(self, reading: Reading, rows: int) -> None:
        """Add llama.cpp's pooled vector of a chunk of `rows` tokens to the input's."""
        vector = self._context.pooled(reading.seq.number)
        if self._context.pooling == POOLING_MEAN:
            part = vector * rows  # the sum, not the mean: only its direction counts in the end
            reading.vector = part if reading.vector is None else reading.vector + part
        elif reading.vector is None or self._context.pooling in (POOLING_LAST, POOLING_RANK):
            reading.vector = vector.copy()  # CLS pooling keeps the first chunk's

    def _result(self, vector: Any) -> bytes:
        """The frame's bytes: a unit vector, or a ranking's score, which is the first number of its vector."""
        score: bytes = vector[:1].astype("<f4").tobytes()
        return score if self._ranks else _unit(vector)


def _check(status: int) -> None:
    if status != OK:
        raise EngineError(f"llama.cpp could not compute this embedding (status {status})", "try again")


def _unit(vector: Any) -> bytes:
    """The vector divided by its length, as little-endian float32; a vector of zeros stays as it is."""
    import numpy as np  # a worker that only writes starts faster without

    length = float(np.linalg.norm(vector.astype(np.float64)))
    unit: bytes = (vector / np.float32(length or 1.0)).astype("<f4").tobytes()
    return unit
