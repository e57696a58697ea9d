"""llama-server's `/embeddings` and `/embedding`: vectors of length 1 in its own form, a list of rows."""

from __future__ import annotations

import msgspec
from aiohttp import web

from server.api.fields import KnownFields
from server.api.inputs import Inputs, inputs_of
from server.api.request import LOG_NOTE, in_use, read, resolve_model, spend
from server.api.vectors import text_vectors, whole_ids
from server.http.wire import reply
from server.services import SERVICES

# Euclid's norm, which the vectors here have.
_EUCLID = 2
_KNOWN = KnownFields(noted={"embd_normalize": _EUCLID}, idle=frozenset({"user", "encoding_format"}))


class RowsBody(msgspec.Struct):
    """The body; `content` is an older name of `input`."""

    input: Inputs | None = None
    content: Inputs | None = None
    model: str | None = None


async def rows(request: web.Request) -> web.Response:
    """`POST /embeddings`: for each input a row with its index and a list of its one vector."""
    body = await read(request, RowsBody, _KNOWN)
    inputs = inputs_of(body.content if body.input is None else body.input, "input", empty=True)
    model = await resolve_model(request, body.model, "embedding")
    async with in_use(request.app[SERVICES], model) as used:
        vectors = await text_vectors(used, await whole_ids(used, inputs), truncate=False, dimensions=None)
    spend(request, vectors.tokens)
    request[LOG_NOTE] += f" {vectors.tokens} tokens"
    numbers = await vectors.numbers()
    return reply([{"index": index, "embedding": [vector]} for index, vector in enumerate(numbers)])
