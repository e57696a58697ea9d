"""Ollama's routes that concern models rather than answers: version, tags, ps, show, pull, delete; and `/lm/stop`.

Shapes as in Ollama's `docs/api.md`; every stream of lines ends in `success` or `error`. Our own keys stand beside
Ollama's: `level`, `reason` and `source` of a model, `hint` and `code` of an error.
"""

from __future__ import annotations

from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from aiohttp import web

from registry.errors import ModelNotFound
from registry.names import parse
from server.api.ollama.shapes import description, details, row
from server.api.request import LOG_NOTE
from server.api.sources import access, find_source
from server.config import OLLAMA_VERSION, VERSION
from server.errors import BadBody
from server.http.problems import STATUS
from server.http.wire import Stream, read_body, reply
from server.loaded.estimate import anonymous_bytes
from server.loaded.worker import Worker
from server.pulls.jobs import Order
from server.services import SERVICES, Services

_FOREVER = timedelta(days=365 * 100)


class Named(msgspec.Struct):
    """A body that names a model, by `model` or, as old clients do, by `name`."""

    model: str | None = None
    name: str | None = None
    verbose: bool | None = None
    stream: bool | None = None

    @property
    def wanted(self) -> str:
        """The name; raises BadBody where there is none."""
        name = self.model or self.name
        if not name:
            raise BadBody("the body names no model", 'send `{"model": "NAME"}`')
        return name


class Pull(Named):
    """A pull; with `detach` it goes on when nobody follows it any more, `limit_rate` is in bytes/s, 0 for no limit.

    `pre` names llama.cpp's pre-tokenizer, for a model whose own is not recognised. `hf_endpoint` and `hf_token` are the
    hub and the token of the caller's environment, where they are not the daemon's.
    """

    detach: bool = False
    limit_rate: float = 0.0
    pre: str = ""
    hf_endpoint: str = ""
    hf_token: str = ""


async def alive(request: web.Request) -> web.Response:
    """`GET /`: many tools take this very sentence for health."""
    return web.Response(text="Ollama is running")


async def version(request: web.Request) -> web.Response:
    """`GET /api/version`: the version of Ollama's API that we answer, our own as `lm`, and a mark of our home."""
    return reply({"version": OLLAMA_VERSION, "lm": VERSION, "home": request.app[SERVICES].config.home_mark})


async def tags(request: web.Request) -> web.Response:
    """`GET /api/tags`: all models."""
    models = await request.app[SERVICES].library.models()
    return reply({"models": [row(model) for model in models]})


async def ps(request: web.Request) -> web.Response:
    """`GET /api/ps`: what is loaded, with its true context."""
    return reply({"models": [_running(worker, stays) for worker, stays in request.app[SERVICES].pool.loaded()]})


async def show(request: web.Request) -> web.Response:
    """`POST /api/show`: everything about one model."""
    body = await read_body(request, Named)
    request[LOG_NOTE] = body.wanted
    library = request.app[SERVICES].library
    model = await library.resolve(body.wanted)
    return reply(description(model, await library.facts(model), bool(body.verbose)))


async def delete(request: web.Request) -> web.Response:
    """`DELETE /api/delete`: forget a model, and end its pull; a worker that holds it keeps it until it is unloaded."""
    body = await read_body(request, Named)
    request[LOG_NOTE] = body.wanted
    services = request.app[SERVICES]
    removed = await services.jobs.remove(parse(body.wanted), await _is_installed(services, body.wanted))
    if removed and not await _is_installed(services, body.wanted):
        return reply({"deleted": removed})
    model = await services.library.find(body.wanted)
    await services.library.delete(model, services.pool.open_blobs())
    return reply({"deleted": model.name})


async def partials(request: web.Request) -> web.Response:
    """`GET /lm/partials`: pulls that are under way or paused, and how far they are."""
    return reply({"partials": await request.app[SERVICES].jobs.partials()})


async def _is_installed(services: Services, name: str) -> bool:
    try:
        await services.library.find(name)
    except ModelNotFound:
        return False
    return True


async def stop(request: web.Request) -> web.Response:
    """`POST /lm/stop`: pause a pull that is under way; else unload a model, after the answers that are under way."""
    body = await read_body(request, Named)
    request[LOG_NOTE] = body.wanted
    services = request.app[SERVICES]
    paused = await services.jobs.pause(parse(body.wanted), await _is_installed(services, body.wanted))
    if paused:
        return reply({"model": paused, "paused": True, "stopped": False})
    model = await services.library.resolve(body.wanted)
    return reply({"model": model.name, "paused": False, "stopped": await services.pool.unload(model)})


async def pull(request: web.Request) -> web.StreamResponse:
    """`POST /api/pull`: bring a model in; joins a pull of the same name that is under way."""
    body = await read_body(request, Pull)
    request[LOG_NOTE] = body.wanted
    services = request.app[SERVICES]
    reference = await find_source(request, services, body.wanted, "pulling a folder")
    if body.limit_rate and not 1000 <= body.limit_rate <= 1e12:
        raise BadBody(f"`limit_rate` is {body.limit_rate:g} bytes/s", "send 1000 or more, or leave it out")
    order = Order(access(request, services.config, body.hf_endpoint, body.hf_token), body.limit_rate, body.pre)
    frames = services.jobs.follow(reference, order, detach=body.detach)
    async with aclosing(frames):
        if body.stream is False:
            last: dict[str, Any] = {}
            async for frame in frames:
                last = frame
            return reply(last, STATUS[last["code"]] if "error" in last else 200)
        stream = Stream(request, "ndjson")
        async for frame in frames:
            await stream.send(frame)
        return await stream.end()


def _running(worker: Worker, stays: float | None) -> dict[str, Any]:
    ready, need = worker.ready.result(), worker.need
    left = _FOREVER if stays is None else timedelta(seconds=stays)
    return {
        "name": worker.model.name,
        "model": worker.model.name,
        "size": ready.weights_bytes + ready.cache_bytes + ready.compute_bytes,
        "digest": worker.model.digest,
        "details": details(worker.model),
        "expires_at": (datetime.now(UTC) + left).isoformat(timespec="microseconds"),
        "size_vram": sum(card.total for card in need.cards),
        "context_length": ready.context,
        "sequences": ready.sequences,
        "weights_bytes": ready.weights_bytes,
        "cache_bytes": ready.cache_bytes,
        "compute_bytes": ready.compute_bytes,
        "predicted_bytes": need.total,
        "predicted_anonymous_bytes": need.anonymous,
        "measured_anonymous_bytes": anonymous_bytes(worker.pid) or 0,
        "active": worker.users,
        "pid": worker.pid,
    }
