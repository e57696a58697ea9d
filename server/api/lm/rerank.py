"""`POST /v1/rerank` and `/rerank`: how well texts answer a question, best first, in Jina's and Cohere's form.

Scores are the model's own, as llama-server gives them. Their scale differs from model to model, so only their order can
be compared.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec
from aiohttp import web

from runtime.errors import BadRequest
from runtime.messages import Rank
from runtime.options import MAX_INPUT_LENGTH, MAX_INPUTS
from server.api.request import LOG_NOTE, in_use, resolve_model
from server.http.wire import read_body, reply
from server.services import SERVICES

# Texts in one frame to the worker, which reads other requests between two frames.
_TEXTS_PER_FRAME = 64


class Document(msgspec.Struct):
    """A document as Cohere's clients may send it."""

    text: str


class RerankBody(msgspec.Struct):
    """The body."""

    query: str
    documents: list[str | Document]
    model: str | None = None
    top_n: int | None = None
    return_documents: bool = False


async def rerank(request: web.Request) -> web.Response:
    """`POST /v1/rerank`: the indices and scores of the documents, the best first, at most `top_n` of them."""
    body = await read_body(request, RerankBody)
    model = await resolve_model(request, body.model)
    texts = _checked(body)
    scores: list[float] = []
    tokens = 0
    async with in_use(request.app[SERVICES], model) as used:
        for start in range(0, len(texts), _TEXTS_PER_FRAME):
            answer = await used.worker.embed(Rank(0, body.query, texts[start : start + _TEXTS_PER_FRAME]))
            scores += [struct.unpack("<f", raw)[0] for raw in answer.vectors]
            tokens += answer.tokens
    request[LOG_NOTE] += f" {tokens} tokens"
    order = sorted(range(len(texts)), key=lambda index: -scores[index])
    results: list[dict[str, Any]] = [{"index": index, "relevance_score": scores[index]} for index in order]
    if body.return_documents:
        results = [{**result, "document": {"text": texts[result["index"]]}} for result in results]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return reply({"object": "list", "model": body.model, "usage": usage, "results": results[: body.top_n]})


def _checked(body: RerankBody) -> list[str]:
    texts = [entry if isinstance(entry, str) else entry.text for entry in body.documents]
    if not texts or not body.query:
        raise BadRequest("`query` or `documents` is empty", "send a question and at least one text")
    if len(texts) > MAX_INPUTS:
        raise BadRequest(f"{len(texts)} documents are too many, {MAX_INPUTS} are possible", "send them in parts")
    if any(len(text) > MAX_INPUT_LENGTH for text in (body.query, *texts)):
        raise BadRequest(f"a text has more than {MAX_INPUT_LENGTH:,} letters", "send it in parts")
    if body.top_n is not None and body.top_n < 1:
        raise BadRequest(f"`top_n` is {body.top_n}, and at least one result is needed", "leave it out for all")
    return texts
