"""From a dialect's request to the frames of its answer; what every dialect needs, whatever it calls it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from registry.store.catalog import Model
from runtime.messages import Submit
from server.errors import BadBody, Unsupported
from server.library import capabilities
from server.loaded.worker import Answer, Worker
from server.services import SERVICES, Services

# Words for the request's line in the log, after its route and status.
LOG_NOTE = web.RequestKey("note", str)


@dataclass
class Held:
    """A worker in use, and how long its load took this time, in ns."""

    worker: Worker
    load_ns: int

    @asynccontextmanager
    async def frames(self, submit: Submit) -> AsyncIterator[AsyncIterator[Answer]]:
        """The frames of one request; leaving the block early cancels it."""
        async with aclosing(self.worker.answer(submit)) as frames:
            yield frames


async def named(request: web.Request, name: str | None) -> Model:
    """The model that a body names, noted for the log; raises BadBody where it names none, ModelNotFound, BadName."""
    if not name:
        raise BadBody("the body names no model", 'send `"model": "NAME"`')
    request[LOG_NOTE] = name
    return await request.app[SERVICES].library.resolve(name)


@asynccontextmanager
async def hold(
    services: Services, model: Model, context: int | None = None, keep_alive: float | None = None
) -> AsyncIterator[Held]:
    """Keep `model` loaded for as long as the block runs."""
    clock = asyncio.get_running_loop().time
    begun = clock()
    async with services.pool.use(model, context, keep_alive) as worker:
        yield Held(worker, round((clock() - begun) * 1e9))


def refuse(**fields: Any) -> None:
    """Raise Unsupported for the first of `fields` that asks for something; empty ones ask for nothing."""
    for name, value in fields.items():
        if value:
            raise Unsupported(f"`{name}` is not in this version of lm", f"leave `{name}` out")


def require(model: Model, capability: str) -> None:
    """Raise Unsupported unless the model can do this."""
    if capability not in capabilities(model):
        raise Unsupported(
            f"`{model.name}` does not support {capability}", f"it offers {', '.join(capabilities(model))}"
        )
