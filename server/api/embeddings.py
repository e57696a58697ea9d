"""Vectors: Ollama's `/api/embed` and its older `/api/embeddings`, OpenAI's `/v1/embeddings`.

All vectors have length 1, those of the older route too. `dimensions` keeps the first ones and makes the length 1 again,
which means something on models that were trained for it (Matryoshka). A text that is too long for the model is cut in
Ollama's routes unless `truncate` is false, and refused in OpenAI's.
"""

from __future__ import annotations

import asyncio
import base64
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from aiohttp import web

from registry.store.catalog import Model
from runtime.errors import BadRequest
from runtime.messages import Embed
from runtime.options import MAX_INPUT_LENGTH, MAX_INPUTS
from server.api import options
from server.api.ollama.answers import Asked
from server.api.request import LOG_NOTE, Held, hold, named
from server.http.wire import read_body, reply
from server.services import SERVICES

# One message to the worker: small enough for its frames, and others get their turn between two.
_INPUTS_AT_ONCE = 128
_LETTERS_AT_ONCE = 1 << 20
Inputs = list[str | list[int]]


class EmbedBody(Asked):
    """The body of `/api/embed`."""

    input: str | Inputs | None = None
    truncate: bool | None = None
    dimensions: int | None = None


class OldBody(Asked):
    """The body of `/api/embeddings`."""

    prompt: str | None = None


class OpenAIBody(msgspec.Struct):
    """The body of `/v1/embeddings`."""

    input: str | list[str | int | list[int]]
    model: str | None = None
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] = "float"


@dataclass(frozen=True)
class Vectors:
    """Vectors as little-endian float32, and the tokens that were read for them."""

    raw: list[bytes]
    tokens: int

    def numbers(self) -> list[tuple[float, ...]]:
        """The vectors as numbers."""
        return [struct.unpack(f"<{len(raw) // 4}f", raw) for raw in self.raw]


async def embed(request: web.Request) -> web.Response:
    """`POST /api/embed`: one vector for each input; without any, load the model."""
    body = await read_body(request, EmbedBody)
    model = await named(request, body.wanted)
    texts: Inputs = ([body.input] if body.input else []) if isinstance(body.input, str) else list(body.input or [])
    begun = asyncio.get_running_loop().time()
    async with hold(request.app[SERVICES], model, options.context(body.options or {}), body.stays) as held:
        vectors = await _vectors(held, texts, body.truncate is not False, body.dimensions or None)
    request[LOG_NOTE] += f" {vectors.tokens} tokens"
    return reply(
        {
            "model": body.wanted,
            "embeddings": vectors.numbers(),
            "total_duration": round((asyncio.get_running_loop().time() - begun) * 1e9),
            "load_duration": held.load_ns,
            "prompt_eval_count": vectors.tokens,
        }
    )


async def embed_one(request: web.Request) -> web.Response:
    """`POST /api/embeddings`: the vector of one text, as older clients ask for it; without a text, load the model."""
    body = await read_body(request, OldBody)
    model = await named(request, body.wanted)
    async with hold(request.app[SERVICES], model, options.context(body.options or {}), body.stays) as held:
        vectors = await _vectors(held, [body.prompt] if body.prompt else [], True, None)
    return reply({"embedding": vectors.numbers()[0] if vectors.raw else []})


async def openai_embed(request: web.Request) -> web.Response:
    """`POST /v1/embeddings`: one vector for each input, as numbers or in base64."""
    body = await read_body(request, OpenAIBody)
    model = await named(request, body.model)
    texts = _inputs(body.input)
    async with hold(request.app[SERVICES], model) as held:
        vectors = await _vectors(held, texts, False, body.dimensions)
    request[LOG_NOTE] += f" {vectors.tokens} tokens"
    shown: list[Any] = vectors.numbers()
    if body.encoding_format == "base64":
        shown = [base64.b64encode(raw).decode() for raw in vectors.raw]
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(shown)]
    usage = {"prompt_tokens": vectors.tokens, "total_tokens": vectors.tokens}
    return reply({"object": "list", "data": data, "model": body.model, "usage": usage})


def _inputs(given: str | list[str | int | list[int]]) -> Inputs:
    """The inputs one by one: a text, token ids, or a list of either; raises BadRequest."""
    single = isinstance(given, str) or (given and all(isinstance(entry, int) for entry in given))
    found: list[Any] = [given] if single else list(given)
    if not found or any(entry in ("", []) for entry in found):
        raise BadRequest("`input` is empty, or holds an empty text", "send some text")
    if any(isinstance(entry, int) for entry in found):
        raise BadRequest("`input` mixes its forms", "send one form")
    return found


async def _vectors(held: Held, texts: Inputs, truncate: bool, dimensions: int | None) -> Vectors:
    """The vectors of `texts`; raises BadRequest for too many of them, or for dimensions that the model has not."""
    if len(texts) > MAX_INPUTS:
        raise BadRequest(f"{len(texts)} inputs are too many, {MAX_INPUTS} are possible", "send them in parts")
    raw: list[bytes] = []
    tokens = 0
    for part in _parts(texts):
        answer = await held.worker.embed(Embed(0, part, truncate=truncate))
        raw += answer.vectors
        tokens += answer.tokens
    return Vectors(raw if dimensions is None else _shortened(held.worker.model, raw, dimensions), tokens)


def _parts(texts: Inputs) -> Iterator[Inputs]:
    part: Inputs = []
    letters = 0
    for text in texts:
        if len(text) > MAX_INPUT_LENGTH:
            raise BadRequest(
                f"an input has {len(text):,} letters, {MAX_INPUT_LENGTH:,} are possible", "send it in parts"
            )
        if part and (len(part) == _INPUTS_AT_ONCE or letters + len(text) > _LETTERS_AT_ONCE):
            yield part
            part, letters = [], 0
        part.append(text)
        letters += len(text)
    if part:
        yield part


def _shortened(model: Model, vectors: list[bytes], dimensions: int) -> list[bytes]:
    full = len(vectors[0]) // 4 if vectors else dimensions
    if not 1 <= dimensions <= full:
        raise BadRequest(f"`dimensions` is {dimensions}, and `{model.name}` has {full}", f"ask for 1 to {full}")
    shape = f"<{dimensions}f"
    found = []
    for raw in vectors:
        values = struct.unpack_from(shape, raw)
        length = math.hypot(*values) or 1.0
        found.append(struct.pack(shape, *(value / length for value in values)))
    return found
