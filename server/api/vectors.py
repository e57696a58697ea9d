"""Vectors of texts, for the embedding routes of all dialects.

A vector has length 1. `dimensions` keeps its first numbers and makes the length 1 again, which means something on
models that were trained for it (Matryoshka).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from registry.store.catalog import Model
from runtime.errors import BadRequest
from runtime.messages import Embed
from runtime.options import MAX_INPUT_LENGTH, MAX_INPUTS
from server.api.request import InUse

# The bounds of one frame to the worker, which reads other requests between two frames.
_INPUTS_PER_FRAME = 128
_LETTERS_PER_FRAME = 1 << 20
Inputs = list[str | list[int]]
"""Texts, or their token ids."""


@dataclass(frozen=True)
class TextVectors:
    """Vectors as little-endian float32, one for each input, and the number of tokens read."""

    raw: list[bytes]
    tokens: int

    def numbers(self) -> list[tuple[float, ...]]:
        """The vectors as numbers."""
        return [struct.unpack(f"<{len(raw) // 4}f", raw) for raw in self.raw]


async def text_vectors(model: InUse, inputs: Inputs, *, truncate: bool, dimensions: int | None) -> TextVectors:
    """One vector for each input. With `truncate`, an input too long for the model is cut instead of refused.

    Raises BadRequest for too many inputs, for one too long to send, and for more dimensions than the model has.
    """
    if len(inputs) > MAX_INPUTS:
        raise BadRequest(f"{len(inputs)} inputs are too many, {MAX_INPUTS} are possible", "send them in parts")
    raw: list[bytes] = []
    tokens = 0
    for batch in _batches(inputs):
        answer = await model.worker.embed(Embed(0, batch, truncate=truncate))
        raw += answer.vectors
        tokens += answer.tokens
    return TextVectors(raw if dimensions is None else _shortened(model.worker.model, raw, dimensions), tokens)


def _batches(inputs: Inputs) -> Iterator[Inputs]:
    batch: Inputs = []
    letters = 0
    for text in inputs:
        if len(text) > MAX_INPUT_LENGTH:
            message = f"an input has {len(text):,} letters, {MAX_INPUT_LENGTH:,} are possible"
            raise BadRequest(message, "send it in parts")
        if batch and (len(batch) == _INPUTS_PER_FRAME or letters + len(text) > _LETTERS_PER_FRAME):
            yield batch
            batch, letters = [], 0
        batch.append(text)
        letters += len(text)
    if batch:
        yield batch


def _shortened(model: Model, vectors: list[bytes], dimensions: int) -> list[bytes]:
    full = len(vectors[0]) // 4 if vectors else dimensions
    if not 1 <= dimensions <= full:
        raise BadRequest(f"`dimensions` is {dimensions}, and `{model.name}` has {full}", f"ask for 1 to {full}")
    shape = f"<{dimensions}f"
    shortened = []
    for raw in vectors:
        values = struct.unpack_from(shape, raw)
        length = math.hypot(*values) or 1.0
        shortened.append(struct.pack(shape, *(value / length for value in values)))
    return shortened
