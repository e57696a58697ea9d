"""The care of the store: `POST /lm/verify`, `GET /lm/du`, `POST /lm/prune`."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import msgspec
from aiohttp import web

from registry.signatures.attaching import attach, signatures_of
from server.access.callers import caller_of
from server.api.fields import KnownFields
from server.api.request import LOG_NOTE, answer, find_model, read
from server.api.sources import callers_hub, find_source
from server.api.streaming import stream_lines
from server.carrying import caring
from server.carrying.deep import verify_deep
from server.carrying.signing import row
from server.http.wire import reply
from server.services import SERVICES


class VerifyBody(msgspec.Struct):
    """The body of `/lm/verify`: a model, or none for all. `deep` is the source to make its tensors anew from.

    With `signed` each model's row has its `files` and the signatures whole, to make signatures and to check them.

    `hf_endpoint` and `hf_token` are the hub and the token of the caller's environment, as for a pull.
    """

    model: str = ""
    signed: bool = False
    deep: str = ""
    hf_endpoint: str = ""
    hf_token: str = ""


class SignBody(msgspec.Struct):
    """The body of `/lm/sign`: a model, and a signature for its files as a Sigstore bundle."""

    model: str = ""
    signature: dict[str, Any] = {}


class PruneBody(msgspec.Struct):
    """The body of `/lm/prune`. `dry_run` removes nothing; `paused` takes pulls along that are paused."""

    dry_run: bool = False
    paused: bool = False


async def verify(request: web.Request) -> web.StreamResponse:
    """`POST /lm/verify`: hash the blobs of a model, or of all, again; the last line names the models that are hurt."""
    body = await read(request, VerifyBody, KnownFields())
    request[LOG_NOTE] = body.model
    if body.deep:
        return await _verify_deep(request, body)
    library, caller = request.app[SERVICES].library, caller_of(request)
    models = await library.meant(body.model) if body.model else await library.models()
    models = [model for model in models if caller.sees(model)]
    if body.model and not models:
        if caller.limited:
            raise caller.not_found(body.model)
        models = [await library.find(body.model)]  # raises ModelNotFound, with what comes close
    async with aclosing(caring.verify(library.store, models, library.rules, body.signed)) as lines:
        return await stream_lines(request, lines)


async def _verify_deep(request: web.Request, body: VerifyBody) -> web.StreamResponse:
    """Make the tensors of a model anew from its source, and compare."""
    services = request.app[SERVICES]
    model = await find_model(request, body.model)
    found = await find_source(request, services, body.deep, "a folder as the source of a model")
    hub = callers_hub(request, services.config, body.hf_endpoint, body.hf_token)
    async with aclosing(verify_deep(services.config, model, found.reference, hub)) as lines:
        return await stream_lines(request, lines)


async def sign(request: web.Request) -> web.Response:
    """`POST /lm/sign`: put a signature on a model."""
    body = await read(request, SignBody, KnownFields())
    request[LOG_NOTE] = body.model
    services = request.app[SERVICES]
    model = await find_model(request, body.model)
    signed = await asyncio.to_thread(attach, services.library.store, model, msgspec.json.encode(body.signature))
    await services.pool.retire()
    found = await asyncio.to_thread(signatures_of, services.library.store, signed)
    return answer(request, {"model": signed.name, "digest": signed.digest, "signatures": [row(each) for each in found]})


async def usage(request: web.Request) -> web.Response:
    """`GET /lm/du`: what the models take of the disk, alone and together."""
    services, caller = request.app[SERVICES], caller_of(request)
    found = await caring.usage(services.library.store, services.pool.open_blobs())
    if caller.limited:
        seen = {model.name for model in await services.library.models() if caller.sees(model)}
        found = {"models": [row for row in found["models"] if row["name"] in seen]}
    return reply(found)


async def prune(request: web.Request) -> web.Response:
    """`POST /lm/prune`: remove what nothing needs; with `dry_run`, say what that is."""
    body = await read(request, PruneBody, KnownFields())
    services, caller = request.app[SERVICES], caller_of(request)
    store, in_use = services.library.store, services.pool.open_blobs()
    rows = await services.jobs.partials(caller.may_touch)
    mine, active = {row["source"] for row in rows}, {row["source"] for row in rows if row["active"]}
    found = await caring.needless(store, in_use, active, body.paused)
    found = [row for row in found if row["kind"] != "pull" or row["name"] in mine]
    if not body.dry_run:
        for row in found:
            if row["kind"] == "pull":
                await services.jobs.remove(row["name"], installed=False, may_touch=caller.may_touch)
        await services.library.collect(services.pool.open_blobs())
    freed = sum(row["bytes"] for row in found)
    return answer(request, {"needless": found, "bytes": freed, "removed": not body.dry_run})
