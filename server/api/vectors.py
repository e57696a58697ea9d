"""Vectors of texts, for the embedding routes of all dialects.

A vector has length 1. `dimensions` keeps its first numbers and makes the length 1 again, which means something on
models that were trained for it (Matryoshka).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from typing import cast

import msgspec

from registry.store.catalog import Model
from runtime.errors import BadRequest
from runtime.messages import Embed, Tokenize
from runtime.options import MAX_INPUT_LENGTH, MAX_INPUTS, MAX_INT
from server.api.options import Range, Whole
from server.api.request import InUse, prompt_from
from server.http.bodies import apart

# The bounds of one frame to the worker, which reads other requests between two frames.
_INPUTS_PER_FRAME = 128
_LETTERS_PER_FRAME = 1 << 20
_DIMENSIONS = Range(-MAX_INT, MAX_INT, whole=True)
Inputs = list[str | list[int]]
"""Texts, or their token ids."""
Mixed = str | list[int | str]
"""A text, or its token ids with texts between them."""


@dataclass(frozen=True)
class TextVectors:
    """Vectors as little-endian float32, one for each input, and the number of tokens read."""

    raw: list[bytes]
    tokens: int

    async def numbers(self) -> list[msgspec.Raw]:
        """The vectors as JSON's lists of numbers, written apart from the event loop: there may be millions."""
        return await apart(_as_json, self.raw)


async def text_vectors(model: InUse, inputs: Inputs, *, truncate: bool, dimensions: Whole | None) -> TextVectors:
    """One vector for each input. With `truncate`, an input too long for the model is cut instead of refused.

    Raises BadRequest for too many inputs, for one too long to send, and for more dimensions than the model has.
    """
    check_count(inputs)
    raw: list[bytes] = []
    tokens = 0
    for batch in _batches(inputs):
        with prompt_from("input"):
            answer = await model.worker.embed(Embed(0, batch, truncate=truncate))
        raw += answer.vectors
        tokens += answer.tokens
    if dimensions is not None:
        raw = await apart(_shortened, model.worker.model, raw, dimensions)
    return TextVectors(raw, tokens)


def check_count(inputs: Sized) -> None:
    """Raise BadRequest for more inputs than one request may have."""
    if len(inputs) > MAX_INPUTS:
        message = f"{len(inputs)} inputs are too many, {MAX_INPUTS} are possible"
        raise BadRequest(message, "send them in parts", "input")


async def whole_ids(model: InUse, given: list[Mixed]) -> Inputs:
    """The inputs with token ids in the place of texts that stand between token ids."""
    check_count(given)
    inputs: Inputs = []
    for entry in given:
        texts = {part for part in entry if isinstance(part, str)} if isinstance(entry, list) else set()
        if not texts:
            inputs.append(cast(str | list[int], entry))
            continue
        check_count(texts)
        found = {text: (await model.worker.tokenize(Tokenize(0, text=text))).ids for text in texts}
        ids: list[int] = []
        for part in entry:
            ids += found[part] if isinstance(part, str) else [part]
        inputs.append(ids)
    return inputs


def _as_json(vectors: list[bytes]) -> list[msgspec.Raw]:
    return [msgspec.Raw(msgspec.json.encode(struct.unpack(f"<{len(raw) // 4}f", raw))) for raw in vectors]


def _batches(inputs: Inputs) -> Iterator[Inputs]:
    batch: Inputs = []
    letters = 0
    for text in inputs:
        if len(text) > MAX_INPUT_LENGTH:
            message = f"an input has {len(text):,} letters, {MAX_INPUT_LENGTH:,} are possible"
            raise BadRequest(message, "send it in parts", "input")
        if batch and (len(batch) == _INPUTS_PER_FRAME or letters + len(text) > _LETTERS_PER_FRAME):
            yield batch
            batch, letters = [], 0
        batch.append(text)
        letters += len(text)
    if batch:
        yield batch


def _shortened(model: Model, vectors: list[bytes], wanted: Whole) -> list[bytes]:
    dimensions = int(_DIMENSIONS.check("dimensions", wanted))
    full = len(vectors[0]) // 4 if vectors else dimensions
    if not 1 <= dimensions <= full:
        message = f"`dimensions` is {dimensions}, and `{model.name}` has {full}"
        raise BadRequest(message, f"ask for 1 to {full}", "dimensions")
    shape = f"<{dimensions}f"
    shortened = []
    for raw in vectors:
        values = struct.unpack_from(shape, raw)
        length = math.hypot(*values) or 1.0
        shortened.append(struct.pack(shape, *(value / length for value in values)))
    return shortened
