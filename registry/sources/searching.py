"""Models of a hub by words: `GET {endpoint}/api/models?search=…`, as huggingface_hub 2.x asks."""

from __future__ import annotations

from http.client import HTTPMessage
from typing import Any
from urllib.parse import urlencode

import msgspec

from registry.errors import AccessDenied, RegistryError, SourceUnavailable
from registry.net.address import HttpAddress
from registry.net.fetch import Fetcher
from registry.net.network import Network

_LONGEST_LIST = 8 << 20
_FIELDS = ("downloads", "likes", "gated", "lastModified", "pipeline_tag", "library_name", "safetensors", "gguf", "tags")


class _Total(msgspec.Struct):
    total: int = 0


class _Listed(msgspec.Struct, rename={"modified": "lastModified"}):
    id: str
    downloads: int = 0
    likes: int = 0
    gated: bool | str = False
    modified: str = ""
    pipeline_tag: str | None = None
    library_name: str | None = None
    safetensors: _Total | None = None
    gguf: _Total | None = None
    tags: list[str] = []


def search(words: str, limit: int, endpoint: str, network: Network) -> list[dict[str, Any]]:
    """Repositories whose names have the words, most downloaded first: rows as `GET /lm/search` answers them.

    `parameters` counts the weights, 0 where the hub does not say. Raises SourceUnavailable, AccessDenied.
    """
    host = HttpAddress.parse(endpoint).host

    def refused(status: int, headers: HTTPMessage) -> RegistryError:
        if status in (401, 403):
            return AccessDenied(f"`{host}` does not let this be searched", "set `HF_TOKEN` to a token that is valid")
        return SourceUnavailable(f"`{host}` answers {status} to a search", "check `HF_ENDPOINT`, or try again later")

    query = {"search": words, "sort": "downloads", "direction": "-1", "limit": str(limit)}
    url = f"{endpoint.rstrip('/')}/api/models?{urlencode([*query.items(), *(('expand[]', each) for each in _FIELDS)])}"
    fetcher = Fetcher(network)
    try:
        data = fetcher.document(url, "the list of models", _LONGEST_LIST, refused)
    finally:
        fetcher.close()
    try:
        found = msgspec.json.decode(data, type=list[_Listed])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise SourceUnavailable(f"`{host}` does not answer as a hub does", "check `HF_ENDPOINT`") from None
    return [_row(each) for each in found[:limit] if each.id.isprintable()]


def _row(found: _Listed) -> dict[str, Any]:
    totals = [each.total for each in (found.safetensors, found.gguf) if each]
    return {
        "name": found.id,
        "parameters": max([0, *totals]),
        "downloads": found.downloads,
        "likes": found.likes,
        "gated": bool(found.gated),
        "gguf": found.gguf is not None or "gguf" in found.tags,
        "task": found.pipeline_tag or "",
        "library": found.library_name or "",
        "modified_at": found.modified,
    }
