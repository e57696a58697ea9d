"""Ollama's `/api/blobs/DIGEST`: files that clients send, for `/api/create` to make models of."""

from __future__ import annotations

import asyncio

from aiohttp import web

from registry.digest import sha256
from registry.errors import DigestMismatch, ModelNotFound, RegistryError
from registry.store.arriving import ArrivingFile
from server.errors import BadBody
from server.http.bodies import IDLE_SECONDS
from server.services import SERVICES

_READ = 1 << 20  # bytes of an upload that are written at once


async def has_blob(request: web.Request) -> web.Response:
    """`HEAD /api/blobs/DIGEST`: whether a file is here already, so that nobody sends it again."""
    digest, store = _digest(request), request.app[SERVICES].library.store
    if await asyncio.to_thread(store.blob, digest) is None:
        raise ModelNotFound(f'blob "{digest}" not found', f"send it: POST /api/blobs/{digest}")
    request.app[SERVICES].creates.uploaded()
    return web.Response()


async def upload(request: web.Request) -> web.Response:
    """`POST /api/blobs/DIGEST`: a file from which a model will be made; it stays for an hour."""
    digest, services = _digest(request), request.app[SERVICES]
    store = services.library.store
    if await asyncio.to_thread(store.blob, digest) is not None:
        return web.Response()
    coming = await asyncio.to_thread(ArrivingFile, store, digest, request.content_length)
    try:
        while part := await _part(request):
            await asyncio.to_thread(coming.write, part)
        await asyncio.to_thread(coming.finish)
    except DigestMismatch as error:
        await asyncio.to_thread(coming.abandon)
        raise BadBody(str(error), error.hint) from None
    except BaseException:
        await asyncio.shield(asyncio.to_thread(coming.abandon))
        raise
    services.creates.uploaded()
    return web.Response(status=201)


async def _part(request: web.Request) -> bytes:
    """The next bytes of an upload, b"" at its end. Raises BadBody for a client that stalls or leaves."""
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(IDLE_SECONDS):
            while size < _READ and (part := await request.content.readany()):
                parts.append(part)
                size += len(part)
    except TimeoutError:
        raise BadBody("the file came too slowly", "send it whole") from None
    except (web.RequestPayloadError, ValueError):
        raise BadBody("the file ends too early", "send it whole") from None
    return b"".join(parts)


def _digest(request: web.Request) -> str:
    """The digest in the path. Raises BadBody."""
    text = request.match_info["digest"].replace("sha256-", "sha256:", 1)
    try:
        return sha256(text)
    except RegistryError:
        raise BadBody("invalid digest format", "it is `sha256:` and 64 hexadecimal digits") from None
