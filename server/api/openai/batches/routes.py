"""OpenAI's `/v1/batches`."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec
from aiohttp import web

from runtime.errors import BadRequest
from server.access.callers import caller_of
from server.api.fields import KnownFields
from server.api.openai.batches.store import BATCHES, BatchRecord
from server.api.openai.files.store import FILES
from server.api.openai.moments import now
from server.api.openai.pages import page
from server.api.openai.responses.body import checked_metadata
from server.api.request import answer, read
from server.errors import Conflict
from server.http.wire import reply

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
SECONDS = 86400
_KNOWN = KnownFields(noted={"output_expires_after": None})


class BatchBody(msgspec.Struct):
    """The body."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, Any] | None = None


async def create(request: web.Request) -> web.Response:
    """`POST /v1/batches`: work off the requests in a file."""
    body = await read(request, BatchBody, _KNOWN)
    batches, owner = request.app[BATCHES], caller_of(request).owner
    await batches.loaded.wait()
    if body.endpoint not in ENDPOINTS:
        raise BadRequest(f"`{body.endpoint[:60]}` takes no batches", f"known are {', '.join(ENDPOINTS)}", "endpoint")
    if body.completion_window != "24h":
        shown = body.completion_window[:20]
        raise BadRequest(f"`completion_window` is `{shown}`", "send 24h", "completion_window")
    file = request.app[FILES].find(owner, body.input_file_id, "input_file_id")
    if file.purpose != "batch":
        raise BadRequest(f"`{file.id}` holds results", "upload a file of requests", "input_file_id")
    moment = now()
    record = BatchRecord(
        id=f"batch_{secrets.token_hex(12)}",
        owner=owner,
        endpoint=body.endpoint,
        input_file_id=file.id,
        created_at=moment,
        expires_at=moment + SECONDS,
        output=f"file-{secrets.token_hex(12)}",
        failures=f"file-{secrets.token_hex(12)}",
        metadata=checked_metadata(body.metadata),
    )
    await batches.add(record)
    return answer(request, record.told())


async def batches(request: web.Request) -> web.Response:
    """`GET /v1/batches`: the batches of this key, the newest first."""
    store = request.app[BATCHES]
    await store.loaded.wait()
    return reply(page(request, [record.told() for record in store.of(caller_of(request).owner)]))


async def batch(request: web.Request) -> web.Response:
    """`GET /v1/batches/{id}`: one batch."""
    return reply((await _found(request)).told())


async def cancel(request: web.Request) -> web.Response:
    """`POST /v1/batches/{id}/cancel`: end a batch; results that are there stay."""
    record = await _found(request)
    if record.ended:
        raise Conflict(f"`{record.id}` is {record.status}, and cannot be cancelled", "get its results")
    if record.status in ("validating", "in_progress"):
        await request.app[BATCHES].enter(record, "cancelling")
    return reply(record.told())


async def _found(request: web.Request) -> BatchRecord:
    store = request.app[BATCHES]
    await store.loaded.wait()
    return store.find(caller_of(request).owner, request.match_info["id"])
