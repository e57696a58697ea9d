"""Vectors of texts, between the steps of answers: pooled as the model says, normalised, several texts per batch.

An encoder (BERT and its kin) reads a text forwards and backwards, so it must fit one batch; as many texts as fit go
together. A causal model reads a text in stretches like a prompt, and its vector is that of the last token.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from typing import Any

from runtime import messages as m
from runtime.context import OK, POOLING_RANK, Context
from runtime.errors import BadRequest, EngineError, PromptTooLong, QueueFull
from runtime.llama import Model
from runtime.prefix import Pool

MAX_INPUTS = 2048


class Job:
    """The inputs of one request, and the vectors so far."""

    def __init__(self, request: int, inputs: list[array[int]]) -> None:
        self.id = request
        self.inputs = inputs
        self.vectors: list[bytes] = []
        self.tokens = sum(map(len, inputs))


class Embedder:
    """Computes embeddings on the engine's context; `prepare` may be called from any thread, the rest from the loop."""

    def __init__(self, model: Model, context: Context, pool: Pool, emit: Callable[[Any], None]) -> None:
        self._model = model
        self._context = context
        self._pool = pool
        self._emit = emit
        self._jobs: deque[Job] = deque()
        self.limit = min(context.batch_size, model.n_ctx_train) if model.encoder else context.tokens - 1

    @property
    def busy(self) -> bool:
        """Whether there is something to compute."""
        return bool(self._jobs)

    def prepare(self, request: m.Embed) -> Job:
        """Tokens of the inputs; PromptTooLong for one too long that may not be cut, BadRequest for none at all."""
        if self._context.pooling == POOLING_RANK:
            raise BadRequest("this model ranks texts and has no embeddings")
        if len(request.inputs) > MAX_INPUTS:
            raise BadRequest(
                f"{len(request.inputs)} inputs are too many, {MAX_INPUTS} are possible", "send them in parts"
            )
        return Job(request.id, [self._tokens(text, request.truncate) for text in request.inputs])

    def _tokens(self, text: str | list[int], truncate: bool) -> array[int]:
        ids = self._model.tokenize(text, special=False, add=True) if isinstance(text, str) else self._checked(text)
        if not ids:
            raise BadRequest("an input is empty", "send some text")
        if len(ids) > self.limit and not truncate:
            raise PromptTooLong(f"an input has {len(ids):,} tokens and the model reads {self.limit:,}", "shorten it")
        if len(ids) <= self.limit:
            return ids
        # What closes a text ([SEP], an end token) is read at the end of a shortened one too.
        closed = isinstance(text, str) and (self._model.encoder or self._model.adds_eos)
        return ids[: self.limit - 1] + ids[-1:] if closed else ids[: self.limit]

    def _checked(self, ids: list[int]) -> array[int]:
        for token in ids:
            if not 0 <= token < self._model.n_vocab:
                raise BadRequest(f"an input has token {token}, and the vocabulary ends at {self._model.n_vocab - 1}")
        return array("i", ids)

    def add(self, job: Job) -> None:
        """Put a prepared request in line."""
        self._jobs.append(job)
        self._complete()

    def cancel(self, request: int) -> None:
        """Forget a request."""
        for job in [job for job in self._jobs if job.id == request]:
            self._jobs.remove(job)
            self._emit(m.Finished(request, "cancelled", 0, 0))

    def step(self) -> None:
        """Compute one batch of the first request."""
        job = self._jobs[0]
        self._context.embed_mode(True)
        try:
            vectors = self._encode(job) if self._model.encoder else [self._read(job.inputs[len(job.vectors)])]
        except EngineError as error:
            self._jobs.popleft()
            self._emit(m.Failed(job.id, error.code, str(error), error.hint))
            return
        finally:
            self._context.embed_mode(self._model.encoder)
        job.vectors += [_unit(vector) for vector in vectors]
        self._complete()

    def _complete(self) -> None:
        while self._jobs and len(self._jobs[0].vectors) == len(self._jobs[0].inputs):
            job = self._jobs.popleft()
            self._emit(m.Vectors(job.id, job.vectors, job.tokens))

    def _encode(self, job: Job) -> list[Any]:
        """As many inputs as fit a batch, each a sequence of its own."""
        row = 0
        batch: list[array[int]] = []
        for ids in job.inputs[len(job.vectors) :]:
            if row + len(ids) > self._context.batch_size or len(batch) == len(self._pool.sequences):
                break
            self._context.put_prompt(row, memoryview(ids), 0, len(batch), len(ids))
            batch.append(ids)
            row += len(ids)
        self._decode(row)
        return [self._context.pooled(number) for number in range(len(batch))]

    def _read(self, ids: array[int]) -> Any:
        """One input in stretches, in a sequence that is given back."""
        seq = self._pool.start(None, 0)
        while self._pool.free < len(ids) and self._pool.evict():
            pass
        if seq is None or self._pool.free < len(ids):
            if seq:
                seq.busy = False
            raise QueueFull("the answers that are being written leave no room for an embedding", "try again later")
        try:
            for start in range(0, len(ids), self._context.outputs):
                stretch = ids[start : start + self._context.outputs]
                self._context.put_prompt(0, memoryview(stretch), start, seq.number, len(stretch))
                self._decode(len(stretch))
                self._pool.grow(seq, stretch)
            return self._context.pooled(seq.number).copy()
        finally:
            self._context.cut(seq.number, 0)
            self._pool.clear(seq)
            seq.busy = False

    def _decode(self, rows: int) -> None:
        status = self._context.decode(rows)
        if status != OK:
            raise EngineError(f"llama.cpp could not compute this embedding (status {status})", "try again")


def _unit(vector: Any) -> bytes:
    """Its direction, as little-endian float32; a vector of zeros stays one."""
    import numpy as np  # a worker that only writes starts faster without

    length = float(np.linalg.norm(vector.astype(np.float64)))
    unit: bytes = (vector / np.float32(length or 1.0)).astype("<f4").tobytes()
    return unit
