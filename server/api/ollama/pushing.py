"""Ollama's `/api/push`, as its `docs/api.md` describes it, and with a target of its own and another form."""

from __future__ import annotations

from contextlib import aclosing
from typing import Literal

from aiohttp import web

from registry.net.reaching import is_loopback
from server.access.peers import require_loopback
from server.api.ollama.fields import OLLAMA
from server.api.request import ModelBody, find_model, read
from server.api.streaming import stream_lines
from server.carrying.pushing import push, target_of
from server.services import SERVICES


class PushBody(ModelBody):
    """The body of `/api/push`. `to` is the name at the registry, by default the model's own.

    `format` is Ollama's form, which keeps every byte, or `modelpack`, CNCF's.
    """

    to: str = ""
    format: Literal["ollama", "modelpack"] = "ollama"
    stream: bool | None = None


async def pushed(request: web.Request) -> web.StreamResponse:
    """`POST /api/push`: send a model to a registry; what is there already is not sent."""
    body = await read(request, PushBody, OLLAMA)
    model, services = await find_model(request, body.model_name), request.app[SERVICES]
    target = target_of(model, body.to)
    if is_loopback(target.host.partition(":")[0]):
        require_loopback(request, "pushing to the daemon's own machine")
    lines = push(services.config, services.library.store, model, target, body.format)
    async with aclosing(lines):
        return await stream_lines(request, lines, whole=body.stream is False)
