"""Ollama's routes about models, as its `docs/api.md` describes them: version, tags, ps, show, pull, delete.

A stream of lines ends in `success` or `error`. Keys of lm's own stand beside Ollama's: `level`, `reason` and `source`
of a model, `hint` and `code` of an error.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web

from registry.errors import ModelNotFound, RegistryError
from registry.names import LATEST
from registry.signatures.attaching import signatures_of
from registry.store.catalog import Model
from runtime.machine.fit import ModelSize
from runtime.messages import CacheConfig
from server.access.callers import caller_of
from server.api.ollama.fields import OLLAMA
from server.api.ollama.shapes import adapter_description, adapter_facts, description, details, row
from server.api.removing import remove
from server.api.request import FAILED, LOG_NOTE, ModelBody, answer, read, visible_model, warning_of
from server.api.sources import base_of, callers_hub, find_source
from server.carrying.signing import row as signature_row
from server.config import OLLAMA_VERSION, VERSION
from server.errors import BadBody
from server.http.problems import STATUS
from server.http.wire import NDJSON, Stream, reply
from server.library import Library, capabilities
from server.loaded.estimate import anonymous_bytes
from server.loaded.worker import Worker
from server.pulls.job import PullOptions
from server.pulls.lines import note_line, success_line, with_digest
from server.services import SERVICES

_FOREVER = timedelta(days=365 * 100)


class ShowBody(ModelBody):
    """The body of `/api/show`; `verbose` keeps lists of the metadata."""

    verbose: bool | None = None


class DeleteBody(ModelBody):
    """The body of `/api/delete`; with `all` a bare name means every level, with `partial` pulls and no model."""

    all: bool = False
    partial: bool = False


class PullBody(ModelBody):
    """The body of `/api/pull`. With `detach` the pull goes on when nobody follows it any more.

    `limit_rate` is in bytes/s, 0 for no limit. `pre` names llama.cpp's pre-tokenizer, for a model whose own is not
    recognised. `accept_unknown_keys` goes on where nobody knows a key of its configuration. `base` names the model
    that an adapter is for, where the adapter does not say it well. `copy` copies a file of this machine that could be
    shared with its owner. `hf_endpoint` and
    `hf_token` are the hub and the token of the caller's environment, where they are not the daemon's.
    """

    stream: bool | None = None
    detach: bool = False
    limit_rate: float = 0.0
    pre: str = ""
    accept_unknown_keys: bool = False
    base: str = ""
    copy: bool = False
    hf_endpoint: str = ""
    hf_token: str = ""


async def alive(request: web.Request) -> web.Response:
    """`GET /`: many tools take this very sentence as a sign of health."""
    return web.Response(text="Ollama is running")


async def version(request: web.Request) -> web.Response:
    """`GET /api/version`: the version of Ollama's API that we answer, our own as `lm`, and a mark of our home."""
    config = request.app[SERVICES].config
    own = {"lm": VERSION, "home": config.home_mark} | ({"offline": True} if config.offline else {})
    return reply({"version": OLLAMA_VERSION} | own)


async def tags(request: web.Request) -> web.Response:
    """`GET /api/tags`: all models."""
    library, caller = request.app[SERVICES].library, caller_of(request)
    (models, problems), reasons = await library.listing(), await library.reasons()
    models, problems = [model for model in models if caller.sees(model)], [] if caller.limited else problems
    rows = [row(model, reasons.get(model.name, "")) | await library.older(model) for model in models]
    rows += await _latest(library, models, rows)
    return reply({"models": rows} | ({"problems": problems} if problems else {}))


async def _latest(library: Library, models: list[Model], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row `NAME:latest` for each bare name, because clients find in the list what they call `NAME`: `llm -m NAME`."""
    names = {model.name for model in models}
    bare = {model.key.tagged(None).display for model in models}
    found = []
    for name in sorted(name for name in bare if f"{name}:{LATEST}" not in names):
        with suppress(RegistryError):
            meant = (await library.resolve(name)).name
            found += [
                each | {"name": f"{name}:{LATEST}", "model": f"{name}:{LATEST}", "alias": meant}
                for each in rows
                if each["name"] == meant
            ]
    return found


async def ps(request: web.Request) -> web.Response:
    """`GET /api/ps`: what is loaded, with its true context."""
    library, caller = request.app[SERVICES].library, caller_of(request)
    rows = []
    for worker, stays in request.app[SERVICES].pool.loaded():
        if caller.sees(worker.model):
            row = _running(worker, stays, await library.model_size(worker.model))
            seen = {each.name for each in await library.adapters_of(worker.model) if caller.sees(each)}
            row["adapters"] = [name for name in worker.adapters if name in seen or not caller.limited]
            rows.append(row)
    return reply({"models": rows})


async def show(request: web.Request) -> web.Response:
    """`POST /api/show`: everything about one model."""
    body = await read(request, ShowBody, OLLAMA)
    request[LOG_NOTE] = body.model_name
    services = request.app[SERVICES]
    library, config = services.library, services.config
    model = await visible_model(request, body.model_name)
    signatures = [signature_row(each) for each in await asyncio.to_thread(signatures_of, library.store, model)]
    signed = {"signatures": signatures} if signatures else {}
    if model.is_adapter:
        return answer(request, await _show_adapter(library, model) | signed)
    meaning, facts = await library.meaning(body.model_name), await library.facts(model)
    usual = facts.model_size.cap_context(CacheConfig.wanted(config.context, config.sequences)).context
    more = {"default_context": usual, "context_reason": facts.model_size.context_reason(usual)}
    others = meaning is not None and meaning.others and not caller_of(request).limited
    more |= signed | await library.older(model)
    more |= {"default": meaning.sentence} if meaning and others else {}
    if model.adapters:
        headers = [await library.adapter(each, model.name) for each in model.adapters]
        more |= {"adapters": [adapter_facts(*pair) for pair in zip(model.adapters, headers, strict=True)]}
    return answer(request, description(model, facts, bool(body.verbose)) | more)


async def _show_adapter(library: Library, model: Model) -> dict[str, Any]:
    """An adapter as `/api/show` describes it; it can do what its base can, and write where that is not here."""
    header, able = await library.adapter(model.adapters[0], model.name), ["completion"]
    with suppress(ModelNotFound):
        able = capabilities(await library.base(model))
    return adapter_description(model, header, able)


async def delete(request: web.Request) -> web.Response:
    """`DELETE /api/delete`: forget a model, and end its pull; it is unloaded, after the answers that are under way.

    A bare name of which several levels are here names none of them: it is refused without `all`.
    """
    body = await read(request, DeleteBody, OLLAMA)
    request[LOG_NOTE] = name = body.model_name
    services, caller = request.app[SERVICES], caller_of(request)
    if body.partial:
        caller.require_listed(name, await services.library.meant(name))
        gone = await services.jobs.remove(name, installed=False, may_touch=caller.may_touch)
        if not gone:
            raise ModelNotFound(f"there is no pull of `{name}`", "`lm list --partial` shows the pulls")
        return answer(request, {"deleted": gone[-1], "all": gone})
    names, notes = await remove(request, name, everything=bool(body.all))
    return answer(request, {"deleted": names[-1], "all": names} | ({"notes": notes} if notes else {}))


async def pull(request: web.Request) -> web.StreamResponse:
    """`POST /api/pull`: bring a model in; joins a pull of the same name that is under way."""
    body = await read(request, PullBody, OLLAMA)
    request[LOG_NOTE] = body.model_name
    services = request.app[SERVICES]
    here = await services.library.meant(body.model_name)
    caller_of(request).require_listed(body.model_name, here)
    if made := next((model for model in here if "parent" in model.own and not model.problem), None):
        return await _made_here(request, made, body.stream is not False)
    found = await find_source(request, services, body.model_name, "pulling a folder")
    if body.limit_rate and not 1000 <= body.limit_rate <= 1e12:
        raise BadBody(f"`limit_rate` is {body.limit_rate:g} bytes/s", "send 1000 or more, or leave it out")
    options = PullOptions(
        callers_hub(request, services.config, body.hf_endpoint, body.hf_token),
        body.limit_rate,
        body.pre,
        body.accept_unknown_keys,
        await base_of(request, services, body.base),
        body.copy,
    )
    frames = services.jobs.follow(found.reference, options, detach=body.detach, owner=caller_of(request).owner)
    async with aclosing(frames):
        if body.stream is False:
            last: dict[str, Any] = {}
            async for frame in frames:
                last = found.explained(frame)
            return answer(request, last, STATUS[last["code"]] if "error" in last else 200)
        stream = Stream(request, NDJSON)
        if warning := warning_of(request):
            await stream.send(note_line(warning) | {"warning": warning})
        if found.note:
            await stream.send(note_line(found.note))
        async for frame in frames:
            await stream.send(with_digest(body.model_name, found.explained(frame)))
            if "error" in frame:
                request[FAILED] = str(STATUS[frame["code"]])
        return await stream.end()


async def _made_here(request: web.Request, model: Model, streams: bool) -> web.StreamResponse:
    """The answer to a pull of a model that was made here: apps pull what they are about to use, to be sure of it."""
    last = success_line(model.name, model.digest)
    if not streams:
        return answer(request, last)
    stream = Stream(request, NDJSON)
    await stream.send(note_line(f"`{model.name}` was made here; there is nothing to bring in"))
    await stream.send(last)
    return await stream.end()


def _running(worker: Worker, stays: float | None, size: ModelSize) -> dict[str, Any]:
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
        "kv_type": worker.kv_type,
        "kv_type_reason": worker.kv_reason,
        "context_reason": size.context_reason(ready.context),
        "sequences": ready.sequences,
        "prompts_in_steps": worker.obstacle,
        "draft": worker.draft.name if worker.draft else "",
        "drafted": worker.drafts.drafted,
        "draft_accepted": worker.drafts.accepted,
        "drafts": worker.drafts.reason,
        "weights_bytes": ready.weights_bytes,
        "cache_bytes": ready.cache_bytes,
        "compute_bytes": ready.compute_bytes,
        "predicted_bytes": need.total,
        "predicted_anonymous_bytes": need.anonymous,
        "measured_anonymous_bytes": anonymous_bytes(worker.pid) or 0,
        "active": worker.users,
        "pid": worker.pid,
    }
