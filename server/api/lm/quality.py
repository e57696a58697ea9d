"""`POST /lm/quality`: how far a model's probabilities are from its source's, measured, and kept with it."""

from __future__ import annotations

from contextlib import aclosing, suppress
from typing import Annotated

import msgspec
from aiohttp import web

from registry.errors import ModelNotFound
from registry.names import Reference, parse
from registry.store.model import Model
from runtime.meter.sizes import WINDOWS
from server.api.fields import KnownFields
from server.api.request import LOG_NOTE, read, require, require_name, resolve_model, visible_model
from server.api.sources import callers_hub, find_source
from server.api.streaming import stream_lines
from server.errors import BadBody
from server.quality.measuring import measure
from server.quality.wish import QualityWish
from server.services import SERVICES

MOST_WINDOWS = 10_000


class QualityBody(msgspec.Struct):
    """The body of `/lm/quality`. `against` is a model that is here or a source, "" for the model's own source.

    `text` takes the place of lm's held-out text. `windows` is the most windows of 512 tokens. Without `keep` the
    card is not kept with the model. `hf_endpoint` and `hf_token` are the hub and the token of the caller's environment.
    """

    model: str = ""
    against: str = ""
    text: str = ""
    windows: Annotated[int, msgspec.Meta(ge=1, le=MOST_WINDOWS)] = WINDOWS
    keep: bool = True
    hf_endpoint: str = ""
    hf_token: str = ""


async def quality(request: web.Request) -> web.StreamResponse:
    """`POST /lm/quality`: measure a model; the last line has its card."""
    body = await read(request, QualityBody, KnownFields())
    request[LOG_NOTE] = require_name(body.model)
    services = request.app[SERVICES]
    model = await resolve_model(request, body.model)
    require(model, "completion")
    if body.text and not body.text.strip():
        raise BadBody("the text is empty", "send some pages of text", "text")
    against = await _meant(request, body.against, model) if body.against else None
    hub = callers_hub(request, services.config, body.hf_endpoint, body.hf_token)
    wish = QualityWish(model, hub, against, body.text, body.windows, body.keep)
    async with aclosing(measure(services.config, services.library, wish, services.pool.open_blobs)) as lines:
        return await stream_lines(request, lines)


async def _meant(request: web.Request, name: str, model: Model) -> Model | Reference:
    """The reference that a name means: a model that is here, or a source.

    A name without a level that means a model of the same source means that source.
    """
    services, found = request.app[SERVICES], None
    with suppress(ModelNotFound):
        found = await visible_model(request, name)
    reference = parse(name)
    whole = reference.level is None and reference.name.tag is None
    if found is not None and not (whole and found.own.get("source") and found.own["source"] == model.own.get("source")):
        return found
    return (await find_source(request, services, name, "measuring against a folder")).reference
