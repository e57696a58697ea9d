"""Routes for responses that were stored: get, follow, delete, cancel, and the items of their input."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from runtime.errors import BadRequest
from server.access.callers import caller_of
from server.api.openai.pages import page
from server.api.openai.responses.answers import send_events
from server.api.openai.responses.store import RESPONSES, StoredResponse
from server.http.wire import reply


async def response(request: web.Request) -> web.StreamResponse:
    """`GET /v1/responses/{id}`: the response, or with `stream=true` the events of one in the background."""
    stored = _found(request)
    if request.query.get("stream", "false").lower() in ("", "false", "0"):
        return reply(stored.response)
    if stored.background is None:
        hint = "send `background: true` when it is made, or leave `stream` out"
        raise BadRequest("only the events of a response in the background are kept", hint, "stream")
    text = request.query.get("starting_after", "-1")
    try:
        after = int(text)
    except ValueError:
        raise BadRequest(f"`starting_after` is `{text[:20]}`", "send a sequence number", "starting_after") from None
    return await send_events(request, stored.background, max(after, -1))


async def delete(request: web.Request) -> web.Response:
    """`DELETE /v1/responses/{id}`: forget a response at once."""
    identity = request.match_info["id"]
    request.app[RESPONSES].delete(caller_of(request).owner, identity)
    return reply({"id": identity, "object": "response", "deleted": True})


async def cancel(request: web.Request) -> web.Response:
    """`POST /v1/responses/{id}/cancel`: end a response in the background; one that has ended stays as it is."""
    stored = _found(request)
    background = stored.background
    if background is None:
        raise BadRequest("only a response in the background can be cancelled", "close the connection of any other")
    if background.task is not None:
        background.task.cancel()
        await background.ended.wait()
    return reply(stored.response)


async def input_items(request: web.Request) -> web.Response:
    """`GET /v1/responses/{id}/input_items`: the items of the request's input, the last one first unless `order=asc`."""
    items: list[dict[str, Any]] = _found(request).items
    return reply(page(request, items))


def _found(request: web.Request) -> StoredResponse:
    return request.app[RESPONSES].find(caller_of(request).owner, request.match_info["id"])
