"""OpenAI's `/v1/embeddings`. An input that is too long for the model is refused, never cut."""

from __future__ import annotations

import base64
from typing import Any, Literal

import msgspec
from aiohttp import web

from runtime.errors import BadRequest
from server.api.openai.bodies import ContentPart, content_texts
from server.api.openai.fields import OPENAI
from server.api.options import Whole
from server.api.request import LOG_NOTE, answer, in_use, read, resolve_model, spend
from server.api.vectors import Mixed, TextVectors, text_vectors, whole_ids
from server.http.bodies import apart
from server.services import SERVICES


class InputContent(msgspec.Struct):
    """An input in the form of a message: a text, or parts that are texts."""

    content: str | list[ContentPart] | None = None


class EmbeddingsBody(msgspec.Struct):
    """The body."""

    input: str | list[str | int | list[int | str] | InputContent] | InputContent
    model: str | None = None
    dimensions: Whole | None = None
    encoding_format: Literal["float", "base64"] = "float"


async def embeddings(request: web.Request) -> web.Response:
    """`POST /v1/embeddings`: one vector for each input, as numbers or in base64."""
    body = await read(request, EmbeddingsBody, OPENAI)
    model = await resolve_model(request, body.model)
    inputs = _inputs(body.input)
    async with in_use(request.app[SERVICES], model) as used:
        ids = await whole_ids(used, inputs)
        vectors = await text_vectors(used, ids, truncate=False, dimensions=body.dimensions)
    spend(request, vectors.tokens)
    request[LOG_NOTE] += f" {vectors.tokens} tokens"
    shown: list[Any] = await _base64(vectors) if body.encoding_format == "base64" else await vectors.numbers()
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(shown)]
    usage = {"prompt_tokens": vectors.tokens, "total_tokens": vectors.tokens}
    return answer(request, {"object": "list", "data": data, "model": body.model, "usage": usage})


async def _base64(vectors: TextVectors) -> list[str]:
    return await apart(lambda: [base64.b64encode(raw).decode() for raw in vectors.raw])


def _inputs(given: Any) -> list[Mixed]:
    """The inputs one by one: a text, token ids with or without texts between them, a message, or a list of these.

    Raises BadRequest.
    """
    single = not isinstance(given, list) or any(isinstance(entry, int) for entry in given)
    found = [given] if single else given
    inputs = ["".join(content_texts(entry.content, "input")) if _is_message(entry) else entry for entry in found]
    if not inputs or any(entry in ("", []) for entry in inputs):
        raise BadRequest("`input` is empty, or holds an empty text", "send some text", "input")
    if any(not isinstance(part, int | str) for entry in inputs if isinstance(entry, list) for part in entry):
        raise BadRequest("`input` mixes its forms", "send one form", "input")
    return inputs


def _is_message(entry: Any) -> bool:
    return isinstance(entry, InputContent)
