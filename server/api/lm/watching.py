"""lm's routes to watch the daemon: events, recent requests, doctor's findings, the end of the log."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from contextlib import aclosing
from typing import Any

from aiohttp import web

from server.access.callers import Caller, caller_of
from server.access.roles import suffices
from server.config import Config
from server.errors import BadBody
from server.http.wire import NAMED_EVENTS, Stream, reply
from server.loaded.slot import Slot
from server.loaded.worker import Worker
from server.services import SERVICES, Services
from server.watching.activity import ACTIVITY, Asked
from server.watching.examining import Examiner
from server.watching.sampling import Held, Sample, Watcher, columns

WATCHER = web.AppKey("watcher", Watcher)
EXAMINER = web.AppKey("examiner", Examiner)
# The end of a log that is read, in bytes, and its lines that are shown at most.
LOG_BYTES = 1 << 18
LOG_LINES = 1000
Json = dict[str, Any]


async def events(request: web.Request) -> web.StreamResponse:
    """`GET /lm/events`: the samples of the last ten minutes, then one a second; with `follow=false` one object.

    Whoever has the role `infer` sees the models that exist for the key, and no pulls.
    """
    caller, watcher = caller_of(request), request.app[WATCHER]
    services = request.app[SERVICES]
    if request.query.get("follow", "").lower() in ("0", "false", "no"):
        sample = watcher.look()
        return reply(_now(services, caller, sample) | {"history": columns(watcher.history(), caller.sees)})
    stream = Stream(request, NAMED_EVENTS)
    async with aclosing(watcher.samples()) as samples:
        await stream.send({"type": "history"} | columns(watcher.history(), caller.sees))
        async for sample in samples:
            await stream.send({"type": "now"} | _now(services, caller, sample))
    return await stream.end()


def _now(services: Services, caller: Caller, sample: Sample) -> Json:
    """One sample with what the daemon does now, as far as it exists for the caller."""
    held = {each.model.blob_digest: each for each in sample.held}
    rows = services.pool.rows()
    seen = [row for row in rows if row[0].process and caller.sees(row[0].process.model)]
    return {
        "at": round(sample.at, 1),
        "memory": sample.memory(caller.sees),
        "graphics": [
            {"name": card.name, "total": card.memory_total, "free": card.memory_free} for card in sample.cards
        ],
        "graphics_held": _on_cards([slot.process for slot, _ in seen if slot.process]),
        "models": [_model(slot, stays, held) for slot, stays in seen],
        "jobs": services.jobs.under_way(caller.may_touch) if suffices(caller.role, "operator") else [],
    }


def _on_cards(workers: list[Worker]) -> Json:
    """Bytes on graphics cards that these models are predicted to take, by part."""
    cards = [card for worker in workers for card in worker.need.cards if not card.shared]
    return {
        "weights": sum(card.weights for card in cards),
        "cache": sum(card.cache for card in cards),
        "compute": sum(card.compute for card in cards),
    }


def _model(slot: Slot, stays: float | None, held: dict[str, Held]) -> Json:
    """A row about a worker: `pending` counts all its requests, `waiting` the requests that the engine has not begun.

    `stays` is in seconds, null for ever; `sequences` is the number of answers at once.
    """
    worker = slot.process
    assert worker is not None
    mine = held.get(worker.model.blob_digest)
    loaded = not worker.loading and not worker.leaving
    return {
        "name": worker.model.name,
        "state": "ready" if loaded else "loading" if worker.loading else "leaving",
        "context": worker.context,
        "sequences": worker.ready.result().sequences if loaded else None,
        "running": min(worker.tally.running, slot.pending),
        "waiting": max(0, slot.pending - worker.tally.running),
        "pending": slot.pending,
        "stays": None if stays is None else round(stays, 1),
        "tokens_per_second": round(mine.rate, 1) if mine else 0.0,
        "weights": mine.weights if mine else 0,
        "cache": mine.cache if mine else 0,
        "compute": mine.compute if mine else 0,
        "predicted": worker.need.total,
    }


async def activity(request: web.Request) -> web.Response:
    """`GET /lm/activity`: the last requests, the newest first; whoever may only ask sees requests of the own key."""
    caller = caller_of(request)
    wide = suffices(caller.role, "operator")

    def may_see(asked: Asked) -> bool:
        own = asked.owner == caller.owner
        return own or (wide and (caller.sees(asked.model) if asked.model else not caller.limited))

    return reply({"requests": request.app[ACTIVITY].rows(may_see)})


async def doctor(request: web.Request) -> web.Response:
    """`GET /lm/doctor`: the findings of `lm doctor` with their hints; `anew=true` looks again within the minute."""
    anew = request.query.get("anew", "").lower() in ("1", "true", "yes")
    findings, at = await request.app[EXAMINER].findings(anew)
    return reply({"findings": findings, "at": round(at, 1)})


async def logged(request: web.Request) -> web.Response:
    """`GET /lm/log`: the last `lines` of the daemon's log; none where the daemon keeps none, in the foreground."""
    text = request.query.get("lines", "200")
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= LOG_LINES:
        raise BadBody(f"`lines` is `{text[:20]}`", f"give a number from 1 to {LOG_LINES}", "lines")
    found = await asyncio.to_thread(_tail, request.app[SERVICES].config, int(text))
    return reply({"lines": found})


def _tail(config: Config, count: int) -> list[str]:
    """The last lines of the log, at most `LOG_BYTES` of it. Reads the file."""
    try:
        with config.log_file.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LOG_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return []
    return list(deque(lines[1:] if size > LOG_BYTES else lines, count))
