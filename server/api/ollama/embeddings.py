"""Ollama's `/api/embed`, and `/api/embeddings`, which is older. Vectors of both have length 1."""

from __future__ import annotations

import asyncio

from aiohttp import web

from server.api.ollama.bodies import LoadBody
from server.api.ollama.fields import OLLAMA
from server.api.options import Whole, check_options
from server.api.request import LOG_NOTE, answer, in_use, pass_over, read, resolve_model, spend
from server.api.vectors import Inputs, text_vectors
from server.services import SERVICES

_EMBED = OLLAMA._replace(misplaced={"prompt": "send the texts as `input`, or use /api/embeddings"})
_OLD_EMBED = OLLAMA._replace(misplaced={"input": "send the text as `prompt`, or use /api/embed"})


class EmbedBody(LoadBody):
    """The body of `/api/embed`."""

    input: str | Inputs | None = None
    truncate: bool | None = None
    dimensions: Whole | None = None


class OldEmbedBody(LoadBody):
    """The body of `/api/embeddings`."""

    prompt: str | None = None


async def embed(request: web.Request) -> web.Response:
    """`POST /api/embed`: one vector for each input; without any, load the model."""
    body = await read(request, EmbedBody, _EMBED)
    model = await resolve_model(request, body.given_name, "embedding")
    pass_over(request, check_options(body.given_options))
    inputs: Inputs = ([body.input] if body.input else []) if isinstance(body.input, str) else list(body.input or [])
    start = asyncio.get_running_loop().time()
    services = request.app[SERVICES]
    async with in_use(services, model, body.wish()) as used:
        vectors = await text_vectors(
            used, inputs, truncate=body.truncate is not False, dimensions=body.dimensions or None
        )
    spend(request, vectors.tokens)
    request[LOG_NOTE] += f" {vectors.tokens} tokens"
    return answer(
        request,
        {
            "model": body.given_name or model.name,
            "embeddings": await vectors.numbers(),
            "total_duration": round((asyncio.get_running_loop().time() - start) * 1e9),
            "load_duration": used.load_ns,
            "prompt_eval_count": vectors.tokens,
        },
    )


async def embed_one(request: web.Request) -> web.Response:
    """`POST /api/embeddings`: the vector of one text, as older clients ask for it; without a text, load the model."""
    body = await read(request, OldEmbedBody, _OLD_EMBED)
    model = await resolve_model(request, body.given_name, "embedding")
    pass_over(request, check_options(body.given_options))
    services = request.app[SERVICES]
    async with in_use(services, model, body.wish()) as used:
        vectors = await text_vectors(used, [body.prompt] if body.prompt else [], truncate=True, dimensions=None)
    spend(request, vectors.tokens)
    return answer(request, {"embedding": (await vectors.numbers())[0] if vectors.raw else []})
