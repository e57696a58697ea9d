"""Models in and out as bundles."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from quant.convert.gguf.source import plan_gguf
from quant.errors import QuantError
from quant.gguf.adapter import check_adapter
from quant.gguf.check import check_model
from quant.gguf.header import read_file
from registry.bundles.fetching import About
from registry.bundles.foreign import ForeignModel
from registry.bundles.reading import Import
from registry.bundles.writing import Export, FileExport
from registry.errors import BadBundle, StoreFailed
from registry.names import Name
from registry.store import manifest
from registry.store.catalog import Model
from registry.store.store import Store
from server.carrying.feeding import BodyStream
from server.carrying.following import Line, Send, follow
from server.library import Library, source_noted
from server.policy.rules import PolicyRules
from server.pulls.provenance import manifest_config, settings, take_template

MEDIA_TYPE = "application/x-tar"
_STEP = 4 << 20


async def send(request: web.Request, store: Store, models: list[Model], files: bool = False) -> web.StreamResponse:
    """Answer with the bundle of these models, or with the `files` of the one. Raises StoreDamaged, StoreFailed before
    its first byte."""
    if files:
        export: Export | FileExport = await asyncio.to_thread(FileExport, store, models[0])
    else:
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


Allow = Callable[[Name], None]
Make = Callable[[Name, Path], AsyncGenerator[Line]]


async def take(request: web.Request, library: Library, allow: Allow, make: Make) -> AsyncGenerator[Line]:
    """Bring the models of the bundle in the request's body in; the last line names them.

    `make` makes a model of a manifest with its blobs beside it. Raises as `Import.run`, and as `make`.
    """
    feed, loop, rules, leaving = BodyStream(), asyncio.get_running_loop(), library.rules, False
    filling = asyncio.create_task(feed.fill(request))
    making: list[asyncio.Task[None]] = []

    def stop() -> None:
        nonlocal leaving
        leaving = True
        feed.stop()
        for each in making:
            each.cancel()

    async def drain(name: Name, place: Path, send: Send) -> None:
        current = asyncio.current_task()
        assert current is not None
        making.append(current)
        if leaving:
            raise asyncio.CancelledError
        async with aclosing(make(name, place)) as lines:
            async for line in lines:
                if line["status"] != "success":
                    send(line)

    def build(name: Name, place: Path, send: Send) -> Model:
        asyncio.run_coroutine_threadsafe(drain(name, place, send), loop).result()
        model = library.store.read(name)
        if model is None:
            raise StoreFailed(f"`{name.display}` was removed while it was brought in", "bring it in again")
        return model

    def work(send: Send) -> Line:
        try:
            given = (partial(inspect, rules), allow, describe, build, rules.check_signature)
            models = Import(library.store, feed, *given).run(send)
        finally:
            feed.stop()
        rows = [{"name": model.name, "digest": model.digest, "size": model.size} for model in models]
        return {"status": "success", "phase": "done", "models": rows}

    try:
        async with aclosing(follow(work, stop)) as lines:
            async for line in lines:
                yield line
    finally:
        filling.cancel()
        await asyncio.wait([filling])


def inspect(rules: PolicyRules, path: Path, media_type: str, name: str, about: About) -> None:
    """Check the header of a file of weights before any worker sees it, and the policy's rules, as a load will.

    Raises BadBundle, StoreFailed, PolicyRefused.
    """
    rules.check_source(source_noted(about.config.get("lm")))
    try:
        header = read_file(path)
        check_model(header) if media_type == manifest.MODEL else check_adapter(header)
        if media_type == manifest.MODEL:
            rules.check_file(name, path.stat().st_size, header.metadata, about.licenses)
    except QuantError as error:
        raise BadBundle(f"the file of `{name}` cannot be used: {error}", error.hint) from None
    except OSError as error:
        raise StoreFailed(f"the file of `{name}` cannot be read: {error.strerror}", "check the disk") from None


def describe(path: Path, model: ForeignModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config and the parameters of a model in another program's form, as a pull of its file writes them.

    Raises BadBundle for a file that is not used as it is.
    """
    try:
        plan = plan_gguf(_OneFile(path, model.title), finished=True)
    except QuantError as error:
        raise BadBundle(f"the file of `{model.title}` cannot be used: {error}", error.hint) from None
    if plan.translated:
        raise BadBundle(
            f"the file of `{model.title}` is in Ollama's own dialect of GGUF",
            "push it to a registry: `lm pull` translates it",
        )
    level = plan.level or max(plan.tensors, key=lambda each: each.size).dtype
    config = manifest_config("", model.revision, plan, level, {"reason": "it came so in a bundle"})
    take_template(config, model.beside.template, plan)
    return config, settings(model.beside.params, plan)[0]


class _OneFile:
    """A file of weights as the files of a model."""

    def __init__(self, path: Path, title: str) -> None:
        self._path, self.title = path, title

    def names(self) -> list[str]:
        return ["model.gguf"]

    def size(self, name: str) -> int:
        return self._path.stat().st_size

    def read(self, name: str, offset: int, size: int) -> bytes:
        with self._path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), size, offset)


@contextlib.contextmanager
def _opened(path: Path, size: int):  # type: ignore[no-untyped-def]
    with path.open("rb", buffering=0) as file:
        if file.seek(0, 2) != size:
            raise ConnectionError("a blob has another size than its manifest says")
        file.seek(0)
        yield file
