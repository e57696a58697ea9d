"""`POST /lm/search`: models of the hub by words; and `POST /lm/outdated`: models that their source has anew."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import msgspec
from aiohttp import web

from quant.types import QuantType
from registry.errors import BadName, RegistryError
from registry.names import parse
from registry.net.hub import Hub
from registry.net.network import Network
from registry.sources.opening import open_source
from registry.sources.searching import search
from registry.store.catalog import Model
from runtime.machine.hardware import detect
from server.access.callers import caller_of
from server.api.fields import KnownFields
from server.api.request import answer, read, visible_model
from server.api.sources import callers_hub
from server.errors import BadBody
from server.logins import read_logins
from server.services import SERVICES

MOST = 100
_AT_ONCE = 4
_SECONDS = 10.0  # without a byte
# The types of weights that levels are named after, best first.
_TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K")


class HubBody(msgspec.Struct):
    """The hub and the token of the caller's environment, where they are not the daemon's."""

    hf_endpoint: str = ""
    hf_token: str = ""


class SearchBody(HubBody):
    """The body: words, and how many rows are wanted at most."""

    query: str = ""
    limit: int = 20


class OutdatedBody(HubBody):
    """The body: a model, at all levels where its name has none; no name for all that are here."""

    model: str = ""


async def find(request: web.Request) -> web.Response:
    """`POST /lm/search`: rows with `name`, `parameters`, `downloads`; `fits` is the best type that memory holds."""
    body = await read(request, SearchBody, KnownFields())
    if not body.query.strip() or len(body.query) > 200 or not body.query.isprintable():
        raise BadBody("`query` has no words to search for", "send up to 200 letters")
    if not 1 <= body.limit <= MOST:
        raise BadBody(f"`limit` is {body.limit:,}", f"send a number from 1 to {MOST}")
    hub = callers_hub(request, request.app[SERVICES].config, body.hf_endpoint, body.hf_token)
    network = Network(timeout=_SECONDS).with_hub(hub)
    rows = await asyncio.to_thread(search, body.query.strip(), body.limit, hub.endpoint, network)
    memory = (await asyncio.to_thread(detect, 1.0)).budget
    return answer(request, {"models": [row | {"fits": _fits(row["parameters"], memory)} for row in rows]})


def _fits(parameters: int, memory: int) -> str | None:
    """The best type whose weights take less than `memory` bytes, "" for none, None where the size is not known."""
    if not parameters:
        return None
    sizes = ((name, QuantType.by_name(name)) for name in _TYPES)
    return next((name for name, each in sizes if parameters * each.block_bytes < memory * each.block), "")


async def outdated(request: web.Request) -> web.Response:
    """`POST /lm/outdated`: for each model its revision, the newest of its source, and the name to pull."""
    body = await read(request, OutdatedBody, KnownFields())
    services, caller = request.app[SERVICES], caller_of(request)
    config = services.config
    hub = callers_hub(request, config, body.hf_endpoint, body.hf_token)
    hub = replace(hub, logins=await asyncio.to_thread(read_logins, config))
    network = Network(timeout=_SECONDS).with_hub(hub)
    models, _ = await services.library.listing()
    models = [model for model in models if caller.sees(model)]
    if body.model:
        await visible_model(request, body.model)
        meant = {model.name for model in await services.library.meant(body.model)}
        models = [model for model in models if model.name in meant]
    slots = asyncio.Semaphore(_AT_ONCE)

    async def looked_at(model: Model) -> dict[str, Any]:
        async with slots:
            return await asyncio.to_thread(_state, model, hub, network)

    return answer(request, {"models": await asyncio.gather(*map(looked_at, models))})


def _state(model: Model, hub: Hub, network: Network) -> dict[str, Any]:
    """A row about one model; `state` is `outdated`, `current` or `unknown`, and then `reason` says why."""
    source, here = str(model.own.get("source", "")), str(model.own.get("revision", ""))
    row = {"name": model.name, "source": source, "revision": here, "newest": "", "pull": "", "reason": ""}
    try:
        reference = parse(source)
        if reference.on_disk or not here:
            return row | {"state": "unknown", "reason": "its source has no revisions"}
        opened = open_source(reference, hub.endpoint, network)
        opened.close()
    except (BadName, RegistryError) as error:
        return row | {"state": "unknown", "reason": str(error)}
    level = "" if reference.registry else f":{model.own.get('level', '')}".rstrip(":")
    state = "current" if opened.revision == here else "outdated"
    return row | {"state": state, "newest": opened.revision, "pull": f"{reference.text}{level}"}
