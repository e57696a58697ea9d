"""`POST /lm/sync`: bring this box to a list of models; and `POST /lm/publish`: keep such a list at a registry."""

from __future__ import annotations

from contextlib import aclosing

import msgspec
from aiohttp import web

from registry.errors import BadName
from registry.names import parse
from registry.net.reaching import is_loopback
from server.access.callers import caller_of
from server.access.peers import is_on_loopback, require_loopback
from server.api.fields import KnownFields
from server.api.request import LOG_NOTE, read
from server.api.streaming import stream_lines
from server.carrying.lists import outgoing
from server.carrying.pushing import push_outgoing
from server.carrying.syncing import Sync, SyncWish
from server.errors import BadBody, Forbidden
from server.services import SERVICES


class SyncBody(msgspec.Struct):
    """The body of `/lm/sync`.

    `source` is where the list comes from: a name at a registry, `lm://HOST:PORT`, or any text that stands for it where
    `list` is the list itself. `near` are neighbours, `lm://…`, that are asked first.
    """

    source: str = ""
    list: str | None = None
    near: tuple[str, ...] = ()
    prune: bool = False
    force: bool = False
    dry_run: bool = False


class PublishBody(msgspec.Struct):
    """The body of `/lm/publish`: a list, and its name at a registry."""

    list: str = ""
    to: str = ""


async def sync(request: web.Request) -> web.StreamResponse:
    """`POST /lm/sync`: what is missing comes; the last line is the report."""
    body = await read(request, SyncBody, KnownFields())
    request[LOG_NOTE] = body.source
    if not body.source:
        raise BadBody("the body names no source", "send `source`, and `list` where it is the list itself", "source")
    if caller_of(request).limited:
        raise Forbidden("a key for some models does not sync", "use a key without a list of models")
    asked = [*body.near, *([body.source] if body.list is None else [])]
    here = [host for host in asked if is_loopback(host.removeprefix("lm://").partition("/")[0].partition(":")[0])]
    if here:
        require_loopback(request, "fetching from the daemon's own machine")
    local = is_on_loopback(request) and (body.list is not None or body.source in here)
    services = request.app[SERVICES]
    wish = SyncWish(body.source, body.list, body.near, body.prune, body.force, body.dry_run, local)
    run = Sync(services.config, services.library, services.pool, services.jobs, wish).run()
    async with aclosing(run) as lines:
        return await stream_lines(request, lines)


async def publish(request: web.Request) -> web.StreamResponse:
    """`POST /lm/publish`: keep a list at a registry, as an artefact."""
    body = await read(request, PublishBody, KnownFields())
    target = parse(body.to)
    if not target.registry:
        raise BadName(f"`{body.to[:80]}` names no registry", "name one such as `registry.lan:5000/team/list:v1`")
    if is_loopback(target.host):
        require_loopback(request, "pushing to the daemon's own machine")
    services = request.app[SERVICES]
    made = outgoing(body.list)
    lines = push_outgoing(services.config, services.library.store, lambda: made, target.name)
    async with aclosing(lines):
        return await stream_lines(request, lines)
