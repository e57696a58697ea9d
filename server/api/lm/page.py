"""The page: files of `server/static/` as they are, with the headers that keep it to itself.

They need no key, because they tell nothing: what the page shows, it asks the other routes for, with the key that its
user has typed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

from aiohttp import ETag, web

from server.errors import NotFound

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
FOLDER = "static"
INDEX = "index.html"
MEDIA = {
    "css": "text/css",
    "html": "text/html",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Asked for again each time, which costs a 304: a newer version must never meet the modules of an older one.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class PageFile:
    """One file of the page."""

    body: bytes
    media: str
    etag: str


@cache
def files() -> dict[str, PageFile]:
    """All files of the page by their paths in its folder."""
    return dict(_found(resources.files("server") / FOLDER, ""))


def _found(folder: Traversable, prefix: str) -> list[tuple[str, PageFile]]:
    found = []
    for entry in folder.iterdir():
        path = prefix + entry.name
        media = MEDIA.get(path.rpartition(".")[2])
        if entry.is_dir():
            found += _found(entry, f"{path}/")
        elif media is not None:
            body = entry.read_bytes()
            found.append((path, PageFile(body, media, hashlib.sha256(body).hexdigest()[:32])))
    return found


def or_page(handler: Handler) -> Handler:
    """The handler of `/`, but for browsers, which say that they take HTML: they are sent to the page."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = _to_page() if "text/html" in request.headers.get("Accept", "") else await handler(request)
        response.headers["Vary"] = "Accept"
        return response

    return handle


async def index(request: web.Request) -> web.Response:
    """`GET /ui/`: the page itself."""
    return _sent(request, files()[INDEX]) if request.path.endswith("/") else _to_page()


async def file(request: web.Request) -> web.Response:
    """`GET /ui/FILE`: one of its files. Raises NotFound."""
    path = request.match_info["file"]
    found = files().get(path)
    if found is None:
        raise NotFound(f"the page has no file `{path[:100]}`", "open `/ui/`")
    return _sent(request, found)


def _to_page() -> web.Response:
    """The way to the page. It is relative, because a proxy may show all of this below a path of its own."""
    return web.Response(status=302, headers={"Location": "ui/", "Cache-Control": "no-cache"})


def _sent(request: web.Request, found: PageFile) -> web.Response:
    known = {each.value for each in request.if_none_match or ()}
    same = found.etag in known or "*" in known
    response = web.Response(status=304) if same else web.Response(body=found.body, content_type=found.media)
    if not same:
        response.charset = "utf-8"
    response.etag = ETag(found.etag)
    response.headers.update(HEADERS)
    return response
