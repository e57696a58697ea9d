"""`GET /openapi.json`: all routes with their bodies, for programs that make clients or test servers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web

from server.http.bodies import apart
from server.http.wire import reply

# Writes the document, from the table of routes.
DOCUMENT = web.AppKey("document", Callable[[], dict[str, Any]])  # type: ignore[var-annotated,arg-type]


async def openapi(request: web.Request) -> web.Response:
    """`GET /openapi.json`."""
    return reply(await apart(request.app[DOCUMENT]))
