"""`GET /v2/…`: the models of the store as a registry serves them, to read; by this a box fetches from its neighbour.

    /v2/                                   whether there is a registry
    /v2/_catalog                           paths: host/namespace/model
    /v2/PATH/tags/list
    /v2/PATH/manifests/TAG-or-DIGEST
    /v2/PATH/blobs/DIGEST                  with ranges

Source: https://github.com/opencontainers/distribution-spec/blob/main/spec.md. Only models that exist for the caller are
there, and a blob only where such a model lists it.
"""

from __future__ import annotations

import asyncio
import re

from aiohttp import web

from registry.errors import BadName, ModelNotFound, StoreDamaged, StoreFailed
from registry.names import Name
from registry.store.catalog import Model
from registry.store.store import Store
from server.access.callers import caller_of
from server.http.wire import reply
from server.services import SERVICES

_PLACE = re.compile(r"([^/]+)/([^/]+)/([^/]+)/(manifests|blobs)/([^/]+)")
_TAGS = re.compile(r"([^/]+)/([^/]+)/([^/]+)/tags/list")
_VERSION = {"Docker-Distribution-Api-Version": "registry/2.0"}


async def version(request: web.Request) -> web.Response:
    """`GET /v2/`: here is something that answers as a registry."""
    return reply({}, headers=_VERSION)


async def served(request: web.Request) -> web.StreamResponse:
    """`GET /v2/…`: a list, a manifest or a blob."""
    path, store = request.match_info["path"], request.app[SERVICES].library.store
    models = [model for model in await request.app[SERVICES].library.models() if caller_of(request).sees(model)]
    # One that is hurt is listed, or whoever keeps a copy of this list would take it for gone; it is not given.
    if path == "_catalog":
        return reply({"repositories": sorted({"/".join(model.key.parts[:3]) for model in models})})
    if match := _TAGS.fullmatch(path):
        here = _of(models, *match.groups())
        return reply({"name": path.removesuffix("/tags/list"), "tags": sorted(str(model.key.tag) for model in here)})
    if match := _PLACE.fullmatch(path):
        host, namespace, name, kind, wanted = match.groups()
        here = _of([model for model in models if not model.problem], host, namespace, name)
        if kind == "manifests":
            return await asyncio.to_thread(_manifest, store, here, wanted)
        return await asyncio.to_thread(_blob, store, here, wanted)
    raise ModelNotFound(f"there is no `{path[:100]}`", "paths are `host/namespace/model`")


def _of(models: list[Model], host: str, namespace: str, name: str) -> list[Model]:
    """The variants of a model. Raises ModelNotFound, BadName."""
    wanted = Name(host, namespace, name)
    here = [model for model in models if model.key.tagged(None).same(wanted)]
    if not here:
        raise ModelNotFound(f"there is no model `{wanted.display}`", "`lm list` and `lm verify` show what is here")
    return here


def _manifest(store: Store, models: list[Model], wanted: str) -> web.StreamResponse:
    for model in models:
        if wanted in (f"sha256:{model.digest}", model.key.tag):
            data, contents = store.manifest(model)
            headers = {"Docker-Content-Digest": f"sha256:{model.digest}", **_VERSION}
            return web.Response(body=data, content_type=contents.media_type, headers=headers)
    raise ModelNotFound(f"`{models[0].key.tagged(None).display}` has no `{wanted[:80]}` here", "")


def _blob(store: Store, models: list[Model], wanted: str) -> web.StreamResponse:
    for model in models:
        try:
            listed = {layer.digest for layer in store.manifest(model)[1].blobs}
        except (StoreDamaged, StoreFailed, BadName):
            continue
        if wanted in listed:
            headers = {"Docker-Content-Digest": wanted, "Content-Type": "application/octet-stream", **_VERSION}
            return web.FileResponse(store.blob_path(wanted).resolve(), headers=headers)
    raise ModelNotFound(f"no model of that name has the blob `{wanted[:80]}`", "")
