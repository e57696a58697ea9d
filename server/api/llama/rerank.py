"""`POST /v1/rerank`, `/v2/rerank` and `/rerank`: how well texts answer a question, best first.

One answer serves the clients of Jina and of Cohere's two versions; `texts` in the place of `documents` asks for the
form of Text Embeddings Inference. Scores are the model's own, as llama-server gives them. Their scale differs from
model to model, so only their order can be compared.
"""

from __future__ import annotations

import math
import secrets
import struct
from typing import Any

import msgspec
from aiohttp import web

from runtime.errors import BadRequest
from runtime.messages import Rank
from runtime.options import MAX_INPUT_LENGTH, MAX_INPUTS, MAX_INT
from server.api.fields import KnownFields
from server.api.options import Range, Whole
from server.api.request import LOG_NOTE, answer, in_use, pass_over, prompt_from, read, resolve_model, spend
from server.http.wire import reply
from server.services import SERVICES

# Texts in one frame to the worker, which reads other requests between two frames.
_TEXTS_PER_FRAME = 64
_RESULTS = Range(1, MAX_INT, whole=True)
_KNOWN = KnownFields(
    noted={
        "max_chunks_per_doc": None,
        "max_tokens_per_doc": None,
        "overlap_tokens": None,
        "priority": None,
        "rank_fields": None,
        "truncation_direction": "Right",
    },
    idle=frozenset({"user", "metadata"}),
)


class Document(msgspec.Struct):
    """A document as Cohere's clients may send it."""

    text: str


class RerankBody(msgspec.Struct):
    """The body. Without `raw_scores`, each score is put between 0 and 1; long texts are cut, whatever `truncate` is."""

    query: str
    documents: list[str | Document] | None = None
    texts: list[str] | None = None
    model: str | None = None
    top_n: Whole | None = None
    return_documents: bool = False
    return_text: bool = False
    raw_scores: bool = True
    truncate: bool = True


async def rerank(request: web.Request) -> web.Response:
    """The indices and scores of the documents, the best first, at most `top_n` of them."""
    body = await read(request, RerankBody, _KNOWN)
    pass_over(request, [] if body.truncate else ["`truncate`"])
    model = await resolve_model(request, body.model, "rerank")
    texts = _checked(body)
    most = None if body.top_n is None else int(_RESULTS.check("top_n", body.top_n))
    scores: list[float] = []
    tokens = 0
    async with in_use(request.app[SERVICES], model) as used:
        for start in range(0, len(texts), _TEXTS_PER_FRAME):
            with prompt_from("query"):
                vectors = await used.worker.embed(Rank(0, body.query, texts[start : start + _TEXTS_PER_FRAME]))
            scores += [struct.unpack("<f", raw)[0] for raw in vectors.vectors]
            tokens += vectors.tokens
    spend(request, tokens)
    request[LOG_NOTE] += f" {tokens} tokens"
    if not body.raw_scores:
        scores = [0.5 + 0.5 * math.tanh(score / 2) for score in scores]  # the logistic curve
    order = sorted(range(len(texts)), key=lambda index: -scores[index])[:most]
    if body.texts is not None:
        return reply(
            [
                {"index": index, "score": scores[index]} | ({"text": texts[index]} if body.return_text else {})
                for index in order
            ]
        )
    results: list[dict[str, Any]] = [{"index": index, "relevance_score": scores[index]} for index in order]
    if body.return_documents:
        results = [{**result, "document": {"text": texts[result["index"]]}} for result in results]
    about = {"id": f"rerank-{secrets.token_hex(12)}", "object": "list", "model": body.model or model.name}
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    meta = {"api_version": {"version": "2"}, "tokens": {"input_tokens": tokens}}
    return answer(request, about | {"results": results, "usage": usage, "meta": meta})


def _checked(body: RerankBody) -> list[str]:
    given = body.texts if body.documents is None else body.documents
    field = "texts" if body.documents is None else "documents"
    texts = [entry if isinstance(entry, str) else entry.text for entry in given or []]
    if not texts or not body.query:
        raise BadRequest("`query` or `documents` is empty", "send a question and at least one text", field)
    if len(texts) > MAX_INPUTS:
        message = f"{len(texts)} documents are too many, {MAX_INPUTS} are possible"
        raise BadRequest(message, "send them in parts", field)
    if any(len(text) > MAX_INPUT_LENGTH for text in (body.query, *texts)):
        raise BadRequest(f"a text has more than {MAX_INPUT_LENGTH:,} letters", "send it in parts", field)
    return texts
