"""`POST /lm/improve`, `POST /lm/rollback`, `GET /lm/jobs`: better weights of the same bytes, and the way back."""

from __future__ import annotations

from contextlib import aclosing
from typing import Annotated

import msgspec
from aiohttp import web

from runtime.meter.sizes import WINDOWS
from server.access.callers import caller_of
from server.api.fields import KnownFields
from server.api.lm.quality import MOST_WINDOWS
from server.api.request import LOG_NOTE, ModelBody, answer, read, require_name, resolve_model, visible_model
from server.api.sources import callers_hub
from server.api.streaming import stream_lines
from server.errors import BadBody
from server.http.wire import reply
from server.improving.improvement import ImproveWish
from server.services import SERVICES


class ImproveBody(msgspec.Struct):
    """The body of `/lm/improve`: a `model` that is here.

    It is improved when this machine is idle, or `now`, with progress; `off` leaves it as it is. `text` takes the place
    of lm's calibration text. `windows` is the most windows of 512 tokens on which both files are measured `now`.
    `hf_endpoint` and `hf_token` are of the caller's environment.
    """

    model: str = ""
    now: bool = False
    off: bool = False
    text: str = ""
    windows: Annotated[int, msgspec.Meta(ge=2, le=MOST_WINDOWS)] = WINDOWS
    hf_endpoint: str = ""
    hf_token: str = ""


async def improve(request: web.Request) -> web.StreamResponse:
    """`POST /lm/improve`: lines as a pull's with `now`, else one object with the `state`."""
    body = await read(request, ImproveBody, KnownFields())
    request[LOG_NOTE] = require_name(body.model)
    services = request.app[SERVICES]
    model = await resolve_model(request, body.model)
    if body.text and not body.text.strip():
        raise BadBody("the text is empty", "send some pages of text", "text")
    if body.off and (body.now or body.text):
        raise BadBody("`off` excludes `now` and `text`", "send one of them", "off")
    if body.off:
        record = await services.improver.leave(model)
        return answer(request, {"model": model.name, "state": record.state, "sentence": record.sentence})
    hub = callers_hub(request, services.config, body.hf_endpoint, body.hf_token)
    if body.now:
        wish = ImproveWish(model, hub, body.text, body.windows)
        async with aclosing(services.improver.follow(wish)) as lines:
            return await stream_lines(request, lines)
    record, found = await services.improver.want(model, hub, body.text)
    waits = services.improver.idleness.why_not()
    row = {"model": model.name, "state": record.state, "sentence": record.sentence, "download_bytes": found}
    return answer(request, row | {"waits": waits})


async def rollback(request: web.Request) -> web.Response:
    """`POST /lm/rollback`: the file that a model had before it was improved."""
    body = await read(request, ModelBody, KnownFields())
    request[LOG_NOTE] = body.model_name
    services = request.app[SERVICES]
    model = await visible_model(request, body.model_name)
    found = await services.improver.roll_back(model)
    quality = {"quality": found.card} if found.card else {}
    return answer(request, {"model": found.name, "digest": found.digest, "size": found.size, **quality})


async def jobs(request: web.Request) -> web.Response:
    """`GET /lm/jobs`: pulls that are under way, improvements and how they ended, and why the next one waits."""
    services, caller = request.app[SERVICES], caller_of(request)
    rows = await services.improver.rows()
    if caller.limited:
        seen = {model.name for model in await services.library.models() if caller.sees(model)}
        rows = [row for row in rows if row["model"] in seen]
    pulls = services.jobs.under_way(caller.may_touch)
    waits = services.improver.idleness.why_not()
    return reply({"improvements": rows, "pulls": pulls, "improve": services.config.improve, "waits": waits})
