"""All routes together: the check of their roles, and the route of a method and a path."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from server.access.roles import ACCESSES
from server.errors import StartFailed
from server.routes import llama, lm, ollama, openai
from server.routes.route import Route

ROUTES = [*ollama.ROUTES, *openai.ROUTES, *llama.ROUTES, *lm.ROUTES]


def check(routes: Sequence[Route]) -> None:
    """Raise StartFailed for a route that has no role of the table of roles: nobody knows who may call it."""
    for route in routes:
        if route.role not in ACCESSES:
            raise StartFailed(f"the route `{route.method} {route.path}` has no role", "give it one in server/routes/")


def plain_path(path: str) -> str:
    """The path with single slashes and none at its end: `//api/chat/` is what a base URL with a slash makes."""
    return "/" + "/".join(part for part in path.split("/") if part)


def find(method: str, path: str) -> Route | None:
    """The route for a method and a plain path. Raises HTTPMethodNotAllowed where only the method is wrong."""
    fitting = [route for route in ROUTES if _fits(route, path)]
    for route in fitting:
        if method == route.method or (method == "HEAD" and route.method == "GET"):
            return route
    if fitting:
        allowed = {route.method for route in fitting}
        raise web.HTTPMethodNotAllowed(method, allowed | ({"HEAD"} if "GET" in allowed else set()))
    return None


def _fits(route: Route, path: str) -> bool:
    beginning, _, variable = route.path.partition("{")
    return (path.startswith(beginning) and len(path) > len(beginning)) if variable else path == route.path
