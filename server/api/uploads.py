"""Uploaded files that a body names by their digests."""

from __future__ import annotations

import asyncio

from registry.digest import sha256
from registry.errors import RegistryError
from server.errors import BadBody
from server.services import Services


async def require_blob(services: Services, digest: str, field: str = "files") -> None:
    """Raise BadBody for what is no digest, or a file that was not uploaded; `field` of the body names it."""
    try:
        wanted = sha256(digest)
    except RegistryError:
        raise BadBody("invalid digest format", "it is `sha256:` and 64 hexadecimal digits", field) from None
    if await asyncio.to_thread(services.library.store.blob, wanted) is None:
        raise BadBody(f'blob "{wanted}" not found', f"send it first: POST /api/blobs/{wanted}", field)
