"""`POST /lm/advise`: which level of a model this machine should hold, and why, before anything is downloaded."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import Any

import msgspec
from aiohttp import web

from registry.errors import BadName, ModelNotFound
from registry.names import LATEST, parse
from registry.store.catalog import Model
from runtime.defaults import CACHE_TYPES, CONTEXT_RANGE, SEQUENCES_RANGE
from runtime.machine.rule import ENOUGH_SPEED
from runtime.messages import CacheConfig
from server.access.callers import Caller, caller_of
from server.advice.asking import ask_adviser
from server.advice.frames import AdviceTask
from server.api.fields import KnownFields
from server.api.request import LOG_NOTE, answer, read, require_name
from server.api.sources import callers_hub, find_source
from server.errors import BadBody
from server.http.problems import STATUS
from server.logins import read_logins
from server.pulls.frames import ModelRequest
from server.services import SERVICES, Services
from server.values import cache_type

_BYTES = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?([kmgt]?)(i?)b?", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class AdviseBody(msgspec.Struct):
    """The body: a model, and the wishes about it. `memory` is a number of bytes, or a text such as `6GB`."""

    model: str = ""
    level: str | None = None
    context: int | None = None
    parallel: int | None = None
    kv_type: str | None = None
    memory: int | str | None = None
    min_tps: float = ENOUGH_SPEED
    hf_endpoint: str = ""
    hf_token: str = ""


async def advise(request: web.Request) -> web.Response:
    """`POST /lm/advise`: a table of levels with what each takes, the choice, its reason, why each better one lost."""
    body = await read(request, AdviseBody, KnownFields())
    request[LOG_NOTE] = require_name(body.model)
    services = request.app[SERVICES]
    advice = await ask_adviser(await _task(request, services, body), services.config.logs)
    if not caller_of(request).limited:
        _take_measured(advice["levels"], await services.library.meant(body.model))
    return answer(request, advice, STATUS[advice["code"]] if "error" in advice else 200)


def _take_measured(rows: list[dict[str, Any]], models: list[Model]) -> None:
    """Put the figures of quality cards in the place of published ones, for the levels of the model that are here."""
    cards = {str(model.own.get("level") or ""): model.card for model in models if model.card}
    for row in rows:
        if card := cards.get(row["level"]):
            row["quality"], row["divergence"] = "measured", card["mean"]["value"]
            row["perplexity_increase"] = card["perplexity"]["value"] - card["reference_perplexity"]["value"]


async def _task(request: web.Request, services: Services, body: AdviseBody) -> AdviceTask:
    config = services.config
    try:
        kv_type = config.kv_type if body.kv_type is None else cache_type(body.kv_type)
    except ValueError:
        raise BadBody(
            f"there is no cache type `{str(body.kv_type)[:40]}`", f"known are {', '.join(CACHE_TYPES)}"
        ) from None
    for name, value, (least, most) in (
        ("context", body.context, CONTEXT_RANGE),
        ("parallel", body.parallel, SEQUENCES_RANGE),
        ("min_tps", body.min_tps, (0, 1_000_000)),
    ):
        if value is not None and not least <= value <= most:
            raise BadBody(f"`{name}` is {value:,}", f"give a number from {least} to {most:,}")
    model = await _installed_model(services, body.model)
    caller = caller_of(request)
    caller.require_listed(body.model, [model] if model else [])
    source, hub = body.model, callers_hub(request, config, body.hf_endpoint, body.hf_token)
    own = model.own if model else {}
    published = str(own.get("level", "")) if own.get("published") else ""
    if (
        published
    ):  # a name with a level is judged by the file in the store; only a bare name needs the source's other levels
        wanted = parse(body.model)
        source = own["source"] if wanted.level is None and not parse(str(own["source"])).registry else ""
    if model is None:
        found = (await find_source(request, services, body.model, "looking into a folder")).reference
        source = found.text
        if found.registry:
            hub = replace(hub, logins=await asyncio.to_thread(read_logins, config))
    reference = parse(body.model)
    named = reference.level or reference.name.tag
    loaded = sorted(
        (worker for worker, _ in services.pool.loaded() if worker.idle), key=lambda worker: worker.last_used
    )
    cache_config = CacheConfig.wanted(body.context or config.context, body.parallel or config.sequences, kv_type)
    disk_free = await asyncio.to_thread(services.library.store.free_bytes)
    return AdviceTask(
        model=ModelRequest(source, hub, str(config.cache), disk_free, cache_config),
        path=str(model.blob) if model else "",
        published=published,
        installed=model.name if model else "",
        level=body.level or (named if model and named and named.lower() != LATEST else None),
        memory=_bytes(body.memory),
        enough=body.min_tps,
        loaded=[(_seen_name(caller, worker.model), worker.need.total) for worker in loaded],
    )


def _seen_name(caller: Caller, model: Model) -> str:
    """The name of a loaded model for the advice, which may tell to unload it."""
    return model.name if caller.sees(model) else "another model"


async def _installed_model(services: Services, name: str) -> Model | None:
    try:
        return await services.library.resolve(name)
    except (ModelNotFound, BadName):
        return None


def _bytes(value: int | str | None) -> int:
    """Bytes from a number or a text; 0 for None. Raises BadBody."""
    if value is None:
        return 0
    match = _BYTES.fullmatch(str(value).strip())
    if match is None or isinstance(value, bool):
        raise BadBody(f"`{str(value)[:40]}` is no amount of memory", "write it as `6GB`, `512MB` or a number of bytes")
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** _POWER[match[2].lower()])
    if not 1 << 20 <= size <= 1 << 50:
        raise BadBody(f"{size:,} bytes of memory hold no model", "write it with a unit: `6GB`, `512MB`")
    return size
