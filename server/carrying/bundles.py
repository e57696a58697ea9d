"""Models in and out as bundles."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path

from aiohttp import web

from quant.errors import QuantError
from quant.gguf.adapter import check_adapter
from quant.gguf.check import check_model
from quant.gguf.header import read_file
from registry.bundles.reading import Import
from registry.bundles.writing import Export
from registry.errors import BadBundle, StoreFailed
from registry.names import Name
from registry.store import manifest
from registry.store.catalog import Model
from registry.store.store import Store
from server.carrying.feeding import BodyStream
from server.carrying.following import Line, Send, follow

MEDIA_TYPE = "application/x-tar"
_STEP = 4 << 20


async def send(request: web.Request, store: Store, models: list[Model]) -> web.StreamResponse:
    """Answer with the bundle of these models. Raises StoreDamaged, StoreFailed before its first byte."""
    export = await asyncio.to_thread(Export, store, models)
    response = web.StreamResponse(headers={"Content-Type": MEDIA_TYPE, "Content-Length": str(export.size)})
    with store.hold(export.digests):
        await response.prepare(request)
        for piece in export.pieces():
            if isinstance(piece.content, bytes):
                await response.write(piece.content)
                continue
            with _opened(piece.content, piece.size) as file:
                while data := await asyncio.to_thread(file.read, _STEP):
                    await response.write(data)
        await response.write_eof()
    return response


async def take(request: web.Request, store: Store, allow: Callable[[Name], None]) -> AsyncGenerator[Line]:
    """Bring the models of the bundle in the request's body in; the last line names them. Raises as `Import.run`."""
    feed = BodyStream()
    filling = asyncio.create_task(feed.fill(request))

    def work(send: Send) -> Line:
        try:
            models = Import(store, feed, inspect, allow).run(send)
        finally:
            feed.stop()
        rows = [{"name": model.name, "digest": model.digest, "size": model.size} for model in models]
        return {"status": "success", "phase": "done", "models": rows}

    try:
        async with aclosing(follow(work, feed.stop)) as lines:
            async for line in lines:
                yield line
    finally:
        filling.cancel()
        await asyncio.wait([filling])


def inspect(path: Path, media_type: str, name: str) -> None:
    """Check the header of a file of weights before any worker sees it. Raises BadBundle, StoreFailed."""
    try:
        header = read_file(path)
        check_model(header) if media_type == manifest.MODEL else check_adapter(header)
    except QuantError as error:
        raise BadBundle(f"the file of `{name}` cannot be used: {error}", error.hint) from None
    except OSError as error:
        raise StoreFailed(f"the file of `{name}` cannot be read: {error.strerror}", "check the disk") from None


@contextlib.contextmanager
def _opened(path: Path, size: int):  # type: ignore[no-untyped-def]
    with path.open("rb", buffering=0) as file:
        if file.seek(0, 2) != size:
            raise ConnectionError("a blob has another size than its manifest says")
        file.seek(0)
        yield file
