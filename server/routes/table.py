"""All routes together: the check of their roles, and the route of a method and a path."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from aiohttp import web

from server.access.roles import ACCESSES
from server.errors import StartFailed
from server.http.problems import Dialect
from server.routes import anthropic, llama, lm, ollama, openai, ranking
from server.routes.route import Route

ROUTES = [*ollama.ROUTES, *openai.ROUTES, *anthropic.ROUTES, *llama.ROUTES, *ranking.ROUTES, *lm.ROUTES]
# Every request looks for its route: most have a path that stands as it is.
_FIXED: dict[str, list[Route]] = {}
for _route in ROUTES:
    if "{" not in _route.path:
        _FIXED.setdefault(_route.path, []).append(_route)
_VARIABLE = [route for route in ROUTES if "{" in route.path]
# Where the path alone does not tell the dialect of its errors.
_BARE: dict[str, Dialect] = {route.path: "openai" for route in (*openai.ROUTES, *ranking.ROUTES)}
_BARE |= {route.path: "llama" for route in llama.ROUTES}


def check(routes: Sequence[Route]) -> None:
    """Raise StartFailed for a route that has no role of the table of roles: nobody knows who may call it."""
    for route in routes:
        if route.role not in ACCESSES:
            raise StartFailed(f"the route `{route.method} {route.path}` has no role", "give it one in server/routes/")


def plain_path(path: str) -> str:
    """The path with single slashes and none at its end: `//api/chat/` is what a base URL with a slash makes."""
    return "/" + "/".join(part for part in path.split("/") if part)


def dialect_of(path: str) -> Dialect:
    """The dialect in which errors of this path are written."""
    path = plain_path(path)
    if path.startswith("/v1/messages"):
        return "anthropic"
    if path.startswith(("/v1/", "/v2/")):
        return "openai"
    return "llama" if path.startswith("/slots/") else _BARE.get(path, "ollama")


def find(method: str, path: str) -> Route | None:
    """The route for a method and a plain path. Raises HTTPMethodNotAllowed where only the method is wrong."""
    fitting: list[Route] = [
        *_FIXED.get(path, []),
        *(route for route in _VARIABLE if variables(route, path) is not None),
    ]
    for route in fitting:
        if method == route.method or (method == "HEAD" and route.method == "GET"):
            return route
    if fitting:
        allowed = {route.method for route in fitting}
        raise web.HTTPMethodNotAllowed(method, allowed | ({"HEAD"} if "GET" in allowed else set()))
    return None


def variables(route: Route, path: str) -> dict[str, str] | None:
    """The variables in a plain path of this route, None where it is another route's."""
    fits = _pattern(route.path).fullmatch(path)
    return None if fits is None else fits.groupdict()


@cache
def _pattern(path: str) -> re.Pattern[str]:
    """The paths of a route whose variables stand as `{name:pattern}`, as in aiohttp's router."""
    fixed, *parts = re.split(r"\{(\w+):([^{}]+)\}", path)
    pattern = re.escape(fixed)
    for name, form, after in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        pattern += f"(?P<{name}>{form}){re.escape(after)}"
    return re.compile(pattern)
