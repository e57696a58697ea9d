"""OpenAI's `/v1/embeddings`. An input that is too long for the model is refused, never cut."""

from __future__ import annotations

import base64
from typing import Any, Literal

import msgspec
from aiohttp import web

from server.api.inputs import Inputs, inputs_of
from server.api.openai.fields import OPENAI
from server.api.options import Whole
from server.api.request import LOG_NOTE, answer, in_use, read, resolve_model, spend
from server.api.vectors import TextVectors, text_vectors, whole_ids
from server.http.bodies import apart
from server.services import SERVICES


class EmbeddingsBody(msgspec.Struct):
    """The body."""

    input: Inputs
    model: str | None = None
    dimensions: Whole | None = None
    encoding_format: Literal["float", "base64"] = "float"


async def embeddings(request: web.Request) -> web.Response:
    """`POST /v1/embeddings`: one vector for each input, as numbers or in base64."""
    body = await read(request, EmbeddingsBody, OPENAI)
    inputs = inputs_of(body.input, "input")
    model = await resolve_model(request, body.model, "embedding")
    async with in_use(request.app[SERVICES], model) as used:
        ids = await whole_ids(used, inputs)
        vectors = await text_vectors(used, ids, truncate=False, dimensions=body.dimensions)
    spend(request, vectors.tokens)
    request[LOG_NOTE] += f" {vectors.tokens} tokens"
    shown: list[Any] = await _base64(vectors) if body.encoding_format == "base64" else await vectors.numbers()
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(shown)]
    usage = {"prompt_tokens": vectors.tokens, "total_tokens": vectors.tokens}
    return answer(request, {"object": "list", "data": data, "model": body.model or model.name, "usage": usage})


async def _base64(vectors: TextVectors) -> list[str]:
    return await apart(lambda: [base64.b64encode(raw).decode() for raw in vectors.raw])
