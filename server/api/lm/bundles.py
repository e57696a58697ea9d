"""`POST /lm/export` and `POST /lm/import`: models as bundles."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from registry.names import Name
from registry.store.catalog import Model
from server.access.callers import caller_of
from server.api.fields import KnownFields
from server.api.request import LOG_NOTE, read, visible_model
from server.api.streaming import stream_lines
from server.carrying import bundles
from server.creates.wish import CreateWish
from server.errors import BadBody
from server.services import SERVICES


class ExportBody(msgspec.Struct):
    """The body of `/lm/export`: the names of models, or of one; with `files` a tar of its files by name."""

    models: list[str] = []
    model: str = ""
    files: bool = False


async def exported(request: web.Request) -> web.StreamResponse:
    """`POST /lm/export`: the models as a bundle, a tar."""
    body = await read(request, ExportBody, KnownFields())
    names = body.models or ([body.model] if body.model else [])
    if not names:
        raise BadBody("the body names no model", 'send `{"models": ["NAME"]}`', "models")
    if body.files and len(names) > 1:
        raise BadBody("the files of one model at a time are exported", "name one model", "models")
    found: dict[Name, Model] = {}
    for name in names:
        model = await visible_model(request, name)
        found[model.key] = model
    request[LOG_NOTE] = ", ".join(model.name for model in found.values())
    return await bundles.send(request, request.app[SERVICES].library.store, list(found.values()), body.files)


async def imported(request: web.Request) -> web.StreamResponse:
    """`POST /lm/import`: bring the models of a bundle in; the body is the tar."""
    services, caller = request.app[SERVICES], caller_of(request)
    names: list[str] = []

    def allow(name: Name) -> None:
        names.append(name.display)
        request[LOG_NOTE] = ", ".join(names)
        caller.require_listed(name.display, [])

    def make(name: Name, place: Path) -> AsyncGenerator[dict[str, Any]]:
        return services.creates.lines(CreateWish(name=name, path=str(place), origin=""))

    async def arriving() -> AsyncGenerator[dict[str, Any]]:
        async with aclosing(bundles.take(request, services.library, allow, make)) as lines:
            async for line in lines:
                yield line
        # Blobs of replaced models go before the end of the answer: there a client leaves, and its request is cancelled.
        await services.library.collect(services.pool.open_blobs())
        await services.pool.retire()

    async with aclosing(arriving()) as lines:
        return await stream_lines(request, lines)
