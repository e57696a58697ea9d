"""One route: method, path, role and handler, with the line about it in `docs/api.md`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec
from aiohttp import web

from server.access.roles import Access

BYTES, FORM = "application/octet-stream", "multipart/form-data"
LINES = ("application/json", "application/x-ndjson")
EVENTS = ("application/json", "text/event-stream")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Route(NamedTuple):
    """One route: the role that it takes, and the line about it in the table of routes (`docs/api.md`)."""

    method: str
    path: str
    role: Access
    handler: Handler
    doc: str
    changes: bool = False
    """Whether it changes what is here: pages of other origins may not call it."""
    body: type[msgspec.Struct] | str | None = None
    """The fields of its JSON body, or the media type of another one; None where it takes none."""
    act: str = ""
    """The word for it in the audit log, where it is an administrative act; "" where it is none."""
    media: tuple[str, ...] = ("application/json",)
    """The media types of its answers."""
