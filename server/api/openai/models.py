"""OpenAI's `/v1/models`."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from registry.store.catalog import Model
from server.access.callers import caller_of
from server.api.removing import remove
from server.api.request import visible_model
from server.http.wire import reply
from server.services import SERVICES


async def models(request: web.Request) -> web.Response:
    """`GET /v1/models`: all models."""
    found, _ = await request.app[SERVICES].library.listing()
    sees = caller_of(request).sees
    return reply({"object": "list", "data": [_entry(model) for model in found if not model.problem and sees(model)]})


async def model(request: web.Request) -> web.Response:
    """`GET /v1/models/{id}`: one model."""
    name = request.match_info["id"]
    found = await visible_model(request, name)
    return reply(_entry(found) | {"id": name})


async def delete(request: web.Request) -> web.Response:
    """`DELETE /v1/models/{id}`: remove a model; it is unloaded, after the answers that are under way."""
    name = request.match_info["id"]
    removed = await remove(request, name)
    notes = {"warning": "; ".join(removed.notes)} if removed.notes else {}
    return reply({"id": name, "object": "model", "deleted": True} | notes)


def _entry(model: Model) -> dict[str, Any]:
    owner = model.key.namespace if "/" in model.name else "library"
    context = int(model.config.get("context_length") or 0)
    entry = {"id": model.name, "object": "model", "created": int(model.modified.timestamp()), "owned_by": owner}
    # By the names of vLLM and of OpenRouter, which clients read: the context that the model was trained for.
    return entry | ({"max_model_len": context, "context_length": context} if context else {})
