"""llama-server's routes about itself: `/props`, `/slots`, `/lora-adapters`. None of them loads a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from aiohttp import web

from runtime.errors import QueueFull
from runtime.messages import Tokenize
from server.access.callers import caller_of
from server.api import options
from server.api.llama.writer import default_settings
from server.api.request import find_model
from server.config import VERSION
from server.errors import Unsupported
from server.http.wire import reply
from server.loaded.worker import Worker
from server.services import SERVICES

_SCALES = "a request names the adapters that change its answer: `adapters`, a list of names or of `{name, scale}`"
_SAVING = "conversations are found in the cache by what they begin with, and kept in memory by themselves"


async def props(request: web.Request) -> web.Response:
    """`GET /props`: a model's settings, sizes and chat template; `?model=NAME` where several are here."""
    services = request.app[SERVICES]
    model = await find_model(request, request.query.get("model"))
    facts = await services.library.facts(model)
    loaded = {worker.model.blob_digest: worker for worker, _ in services.pool.loaded()}
    worker = loaded.get(model.blob_digest)
    metadata = facts.plan.metadata
    context = worker.context if worker else int(model.config.get("context_length") or 0)
    sampling = options.sampling(model.params, {})
    return reply(
        {
            "default_generation_settings": {"params": default_settings(sampling), "n_ctx": context},
            "total_slots": services.config.sequences,
            "model_alias": model.name,
            "model_path": model.name,
            "model_ftype": model.config.get("file_type") or "",
            "modalities": {"vision": False, "video": False, "audio": False},
            "endpoint_slots": True,
            "endpoint_props": False,
            "endpoint_metrics": True,
            "chat_template": str(metadata.get("tokenizer.chat_template", "")),
            **(await _special(worker, metadata) if worker else {}),
            "build_info": f"lm {VERSION}",
            "is_sleeping": worker is None,
        }
    )


async def change_props(request: web.Request) -> NoReturn:
    """`POST /props`: refused."""
    raise Unsupported("properties are not changed while models run", "see `lm config`, or send options with a request")


async def slots(request: web.Request) -> web.Response:
    """`GET /slots`: the answers that may be written at once, of each loaded model, and how many of them are.

    Raises QueueFull where `fail_on_no_slot` asks for it and none is free.
    """
    services, sees = request.app[SERVICES], caller_of(request).sees
    name = request.query.get("model")
    wanted = (await find_model(request, name)).blob_digest if name else ""
    rows: list[dict[str, Any]] = []
    for worker, _ in services.pool.loaded():
        if not sees(worker.model) or (wanted and worker.model.blob_digest != wanted):
            continue
        for _ in range(services.config.sequences):
            number = len(rows)
            busy = number % services.config.sequences < worker.users
            row = {"id": number, "model": worker.model.name, "n_ctx": worker.context, "is_processing": busy}
            rows.append(row | {"speculative": services.config.speculation})
    if request.query.get("fail_on_no_slot") and rows and all(row["is_processing"] for row in rows):
        raise QueueFull(f"all {len(rows)} slots are busy", "ask again, or ask anyway: requests wait in a queue")
    return reply(rows)


async def change_slot(request: web.Request) -> NoReturn:
    """`POST /slots/{id}`: refused; the prompt cache needs no orders."""
    action = request.query.get("action", "")[:20]
    raise Unsupported(f"slots take no orders (`action={action}`)", _SAVING)


async def adapters(request: web.Request) -> web.Response:
    """`GET /lora-adapters`: the adapters here for a model; `?model=NAME` where several are here."""
    services, sees = request.app[SERVICES], caller_of(request).sees
    model = await find_model(request, request.query.get("model"))
    names = sorted(each.name for each in await services.library.adapters_of(model) if sees(each))
    return reply([{"id": number, "path": name, "name": name, "scale": 0.0} for number, name in enumerate(names)])


async def change_adapters(request: web.Request) -> NoReturn:
    """`POST /lora-adapters`: refused, because scales belong to a request here."""
    raise Unsupported("adapters have no scale for all requests", _SCALES)


async def _special(worker: Worker, metadata: Mapping[str, Any]) -> dict[str, str]:
    """The texts of the tokens that begin and end a text, "" for one that the model has not."""
    found = {"bos_token": "", "eos_token": ""}
    for name in found:
        number = metadata.get(f"tokenizer.ggml.{name}_id")
        if isinstance(number, int) and not isinstance(number, bool):
            tokens = await worker.tokenize(Tokenize(0, text=[number], pieces=True))
            found[name] = tokens.pieces[0].decode(errors="replace")
    return found
