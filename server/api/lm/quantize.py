"""`POST /lm/quantize`: another level of a model that is here, with errors weighed by statistics of its inputs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from dataclasses import replace
from typing import Any

import msgspec
from aiohttp import web

from quant.errors import UnknownLevel
from quant.levels.budget import is_budget, is_mixed
from quant.levels.recipes import level_of
from registry.names import Reference
from registry.store.model import Model
from registry.words import AUTO, canonical_level
from server.access.callers import caller_of
from server.api.fields import KnownFields
from server.api.lm.whole import whole_copy
from server.api.request import LOG_NOTE, read, require, require_name, resolve_model
from server.api.sources import callers_hub
from server.api.streaming import stream_lines
from server.api.uploads import require_blob
from server.creates.wish import CreateWish
from server.errors import BadBody, Unsupported
from server.pulls.frames import Effort, Statistics
from server.pulls.job import PullOptions
from server.pulls.origin import source_at
from server.quality.learning import WINDOWS, Learning
from server.quality.wish import QualityWish
from server.services import SERVICES, Services

Line = dict[str, Any]
_EFFORTS: dict[str, Effort] = {"quick": "quick", "importance": "importance", "best": "best"}


_GOALS = ("quality", "speed")


class QuantizeBody(msgspec.Struct):
    """The body of `/lm/quantize`: a `model` that is here, and the `level` to make beside it.

    `effort` is `quick`, by the weights alone, or `importance`. Then errors are weighed by the squares of the model's
    inputs: on lm's calibration text, on `text`, or as an `importance` file has them, the digest of an uploaded blob,
    which messages call `importance_name`. With `best` an error in one column is made up for in the others, by the
    products of inputs. With both, types are chosen by what the output feels of them; for the `goal` `speed` it counts,
    too, how slowly this machine reads them. `hf_endpoint` and `hf_token` are of the caller's environment.
    """

    model: str = ""
    level: str = ""
    effort: str = "importance"
    goal: str = "quality"
    text: str = ""
    importance: str = ""
    importance_name: str = ""
    hf_endpoint: str = ""
    hf_token: str = ""


async def quantize(request: web.Request) -> web.StreamResponse:
    """`POST /lm/quantize`: make a level; lines as a pull's."""
    body = await read(request, QuantizeBody, KnownFields())
    request[LOG_NOTE] = require_name(body.model)
    services = request.app[SERVICES]
    model = await resolve_model(request, body.model)
    level, effort = _level(body.level), _effort(body)
    _check_goal(body, level, effort)
    if effort != "quick":
        require(model, "completion")
    if body.importance:
        await require_blob(services, body.importance, "importance")
    hub = callers_hub(request, services.config, body.hf_endpoint, body.hf_token)
    work = _Work(request, services, model, level, PullOptions(hub, effort=effort))
    async with aclosing(work.lines(body)) as lines:
        return await stream_lines(request, lines)


class _Work:
    """One level in the making."""

    def __init__(
        self, request: web.Request, services: Services, model: Model, level: str, options: PullOptions
    ) -> None:
        self._request, self._services, self._model, self._level = request, services, model, level
        self._options = options

    async def lines(self, body: QuantizeBody) -> AsyncGenerator[Line]:
        """Collect the statistics, then make the level of the source, or of a whole copy that is kept here.

        Raises Unsupported where neither is known, and as `Learning.lines`, `Jobs.follow` and `Creates.lines`.
        """
        source = source_at(self._model, self._level)
        copy = None if source else await whole_copy(self._services, self._model)
        if source is None and copy is None:
            raise Unsupported(
                f"nobody knows the weights that `{self._model.name}` was made of",
                "pull the model from its source, or at F16 or BF16, and quantize that",
            )
        with ExitStack() as held:
            if body.importance:
                held.enter_context(self._services.library.store.hold([body.importance]))
            statistics = None
            if self._options.effort != "quick":
                async with aclosing(self._statistics(body)) as lines:
                    async for line in lines:
                        if isinstance(line, Statistics):
                            statistics = line
                        else:
                            yield line
            async with aclosing(self._made(source, copy, statistics)) as lines:
                async for line in lines:
                    yield line

    async def _statistics(self, body: QuantizeBody) -> AsyncGenerator[Line | Statistics]:
        """Lines while statistics are collected, then these."""
        services = self._services
        if body.importance:
            path = await asyncio.to_thread(services.library.store.blob, body.importance)
            assert path is not None
            yield Statistics(str(path), body.importance_name or "the importance file")
            return
        wish = QualityWish(self._model, self._options.hub, text=body.text, windows=WINDOWS)
        grams, harms = self._options.effort == "best", is_mixed(self._level)
        speed = body.goal == "speed"
        learning = Learning(services.config, services.library, wish, grams=grams, harms=harms, speed=speed)
        async with aclosing(learning.lines()) as lines:
            async for line in lines:
                yield line
        assert learning.statistics is not None
        yield learning.statistics

    def _made(
        self, source: Reference | None, copy: Model | None, statistics: Statistics | None
    ) -> AsyncGenerator[Line]:
        services, model = self._services, self._model
        if source is not None:
            content = str(model.own.get("content") or "")
            options = replace(self._options, statistics=statistics, content=content, pre=str(model.own.get("pre", "")))
            return services.jobs.follow(source, options, owner=caller_of(self._request).owner)
        assert copy is not None
        name = model.key.tagged(self._level)
        return services.creates.lines(CreateWish(name, copy, level=self._level, statistics=statistics))


def _level(text: str) -> str:
    """The level to make. Raises BadBody, BadName, UnknownLevel."""
    if not text:
        raise BadBody("the body names no level", "send `level`, such as `Q4_K_M`", "level")
    level = canonical_level(text)
    if level == AUTO or level.endswith(".gguf"):
        raise UnknownLevel(f"`{level}` is no level", "name one such as `Q4_K_M`, `4GB` or `4.5bpw`")
    if not is_budget(level):
        level_of(level)
    return level


def _effort(body: QuantizeBody) -> Effort:
    """The effort. Raises BadBody."""
    effort = _EFFORTS.get(body.effort)
    if effort is None:
        raise BadBody(f"`{ascii(body.effort[:40])[1:-1]}` is no effort", f"send one of {', '.join(_EFFORTS)}", "effort")
    if effort == "quick" and (body.text or body.importance):
        raise BadBody("the effort `quick` takes no statistics", "leave the text and the file out, or the effort")
    if effort == "best" and body.importance:
        raise BadBody("an importance file has no products of inputs", "send a `text`, or the effort `importance`")
    if body.text and body.importance:
        raise BadBody("a text and an importance file exclude each other", "send one of them", "importance")
    if body.text and not body.text.strip():
        raise BadBody("the text is empty", "send some pages of text", "text")
    return effort


def _check_goal(body: QuantizeBody, level: str, effort: Effort) -> None:
    """Raise BadBody for a goal that nobody knows, or that can decide about nothing."""
    if body.goal not in _GOALS:
        raise BadBody(f"`{ascii(body.goal[:40])[1:-1]}` is no goal", f"send one of {', '.join(_GOALS)}", "goal")
    if body.goal == "speed" and (effort == "quick" or body.importance or not is_mixed(level)):
        raise BadBody(
            "the goal `speed` needs a choice of types, by measured sensitivity",
            "send a budget or a level such as `Q4_K_M`, the effort `importance` or `best`, and no file",
            "goal",
        )
