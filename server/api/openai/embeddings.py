"""OpenAI's `/v1/embeddings`. An input that is too long for the model is refused, never cut."""

from __future__ import annotations

import base64
from typing import Any, Literal

import msgspec
from aiohttp import web

from runtime.errors import BadRequest
from server.api.request import LOG_NOTE, in_use, resolve_model
from server.api.vectors import Inputs, text_vectors
from server.http.wire import read_body, reply
from server.services import SERVICES


class EmbeddingsBody(msgspec.Struct):
    """The body."""

    input: str | list[str | int | list[int]]
    model: str | None = None
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] = "float"


async def embeddings(request: web.Request) -> web.Response:
    """`POST /v1/embeddings`: one vector for each input, as numbers or in base64."""
    body = await read_body(request, EmbeddingsBody)
    model = await resolve_model(request, body.model)
    inputs = _inputs(body.input)
    async with in_use(request.app[SERVICES], model) as used:
        vectors = await text_vectors(used, inputs, truncate=False, dimensions=body.dimensions)
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
