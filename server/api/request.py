"""From a request's body to a loaded model: the steps that all dialects share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

from registry.errors import ModelNotFound
from registry.store.catalog import Model
from runtime.messages import Submit
from server.errors import BadBody, Unsupported
from server.library import capabilities
from server.loaded.worker import Answer, Worker
from server.services import SERVICES, Services

# Words for the request's line in the log, after its route and status.
LOG_NOTE = web.RequestKey("note", str)


class ModelBody(msgspec.Struct):
    """A body that names a model, by `model` or, as old clients of Ollama do, by `name`."""

    model: str | None = None
    name: str | None = None

    @property
    def model_name(self) -> str:
        """The name; raises BadBody where there is none."""
        return require_name(self.model or self.name)


def require_name(name: str | None) -> str:
    """The name of a model in a body; raises BadBody where there is none."""
    if not name:
        raise BadBody("the body names no model", 'send `{"model": "NAME"}`')
    return name


@dataclass
class InUse:
    """A loaded model while a request uses it, and how long this request waited for the load, in ns.

    `context_reason` is what the model's context means for its answers, where this request loaded it.
    """

    worker: Worker
    load_ns: int
    context_reason: str = ""

    @asynccontextmanager
    async def frames(self, submit: Submit) -> AsyncIterator[AsyncIterator[Answer]]:
        """The frames of one prompt's answers; leaving the block early cancels them."""
        async with aclosing(self.worker.answer(submit)) as frames:
            yield frames


async def resolve_model(request: web.Request, name: str | None) -> Model:
    """The model of this name, which the log gets too.

    Raises BadBody where there is no name, ModelNotFound, BadName.
    """
    request[LOG_NOTE] = name = require_name(name)
    return await request.app[SERVICES].library.resolve(name)


async def is_installed(services: Services, name: str) -> bool:
    """Whether the store has a model of this name, even a broken one. Raises BadName."""
    try:
        await services.library.find(name)
    except ModelNotFound:
        return False
    return True


@asynccontextmanager
async def in_use(
    services: Services, model: Model, context: int | None = None, keep_alive: float | None = None
) -> AsyncIterator[InUse]:
    """Keep `model` loaded while the block runs, with room for `context` tokens, and `keep_alive` seconds longer.

    None leaves either to the settings. Raises as `Pool.use`.
    """
    clock = asyncio.get_running_loop().time
    start, before = clock(), [worker for worker, _ in services.pool.loaded()]
    async with services.pool.use(model, context, keep_alive) as worker:
        size = await services.library.model_size(model)
        reason = "" if worker in before else size.context_reason(worker.context)
        yield InUse(worker, round((clock() - start) * 1e9), reason)


def refuse(**fields: Any) -> None:
    """Raise Unsupported for the first of `fields` that is not empty; the keywords are the names in the message."""
    for name, value in fields.items():
        if value:
            raise Unsupported(f"`{name}` is not in this version of lm", f"leave `{name}` out")


def require(model: Model, capability: str) -> None:
    """Raise Unsupported unless the model has this capability."""
    if capability not in capabilities(model):
        raise Unsupported(
            f"`{model.name}` does not support {capability}", f"it offers {', '.join(capabilities(model))}"
        )
