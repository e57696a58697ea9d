"""Ollama's routes about models, as its `docs/api.md` describes them: version, tags, ps, show, pull, delete.

A stream of lines ends in `success` or `error`. Keys of lm's own stand beside Ollama's: `level`, `reason` and `source`
of a model, `hint` and `code` of an error.
"""

from __future__ import annotations

from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web

from registry.names import parse
from server.api.ollama.shapes import description, details, row
from server.api.request import LOG_NOTE, ModelBody, is_installed
from server.api.sources import callers_hub, find_source
from server.config import OLLAMA_VERSION, VERSION
from server.errors import BadBody
from server.http.problems import STATUS
from server.http.wire import NDJSON, Stream, read_body, reply
from server.loaded.estimate import anonymous_bytes
from server.loaded.worker import Worker
from server.pulls.job import PullOptions
from server.services import SERVICES

_FOREVER = timedelta(days=365 * 100)


class ShowBody(ModelBody):
    """The body of `/api/show`; `verbose` keeps lists of the metadata."""

    verbose: bool | None = None


class PullBody(ModelBody):
    """The body of `/api/pull`. With `detach` the pull goes on when nobody follows it any more.

    `limit_rate` is in bytes/s, 0 for no limit. `pre` names llama.cpp's pre-tokenizer, for a model whose own is not
    recognised. `hf_endpoint` and `hf_token` are the hub and the token of the caller's environment, where they are not
    the daemon's.
    """

    stream: bool | None = None
    detach: bool = False
    limit_rate: float = 0.0
    pre: str = ""
    hf_endpoint: str = ""
    hf_token: str = ""


async def alive(request: web.Request) -> web.Response:
    """`GET /`: many tools take this very sentence as a sign of health."""
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
    body = await read_body(request, ShowBody)
    request[LOG_NOTE] = body.model_name
    library = request.app[SERVICES].library
    model = await library.resolve(body.model_name)
    return reply(description(model, await library.facts(model), bool(body.verbose)))


async def delete(request: web.Request) -> web.Response:
    """`DELETE /api/delete`: forget a model, and end its pull; it is unloaded, after the answers that are under way."""
    body = await read_body(request, ModelBody)
    request[LOG_NOTE] = body.model_name
    services = request.app[SERVICES]
    removed = await services.jobs.remove(parse(body.model_name), await is_installed(services, body.model_name))
    if removed and not await is_installed(services, body.model_name):
        return reply({"deleted": removed})
    model = await services.library.find(body.model_name)
    await services.library.delete(model, services.pool.open_blobs())
    await services.pool.retire()
    return reply({"deleted": model.name})


async def pull(request: web.Request) -> web.StreamResponse:
    """`POST /api/pull`: bring a model in; joins a pull of the same name that is under way."""
    body = await read_body(request, PullBody)
    request[LOG_NOTE] = body.model_name
    services = request.app[SERVICES]
    reference = await find_source(request, services, body.model_name, "pulling a folder")
    if body.limit_rate and not 1000 <= body.limit_rate <= 1e12:
        raise BadBody(f"`limit_rate` is {body.limit_rate:g} bytes/s", "send 1000 or more, or leave it out")
    options = PullOptions(
        callers_hub(request, services.config, body.hf_endpoint, body.hf_token), body.limit_rate, body.pre
    )
    frames = services.jobs.follow(reference, options, detach=body.detach)
    async with aclosing(frames):
        if body.stream is False:
            last: dict[str, Any] = {}
            async for frame in frames:
                last = frame
            return reply(last, STATUS[last["code"]] if "error" in last else 200)
        stream = Stream(request, NDJSON)
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
