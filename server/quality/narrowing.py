"""Whole weights of a model, and the channels of each of its feed-forwards that stay, in files for a cut to read."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Any

import msgspec

from registry.store import fsops
from registry.store.fsops import plainly
from registry.store.model import Model
from runtime.meter.sizes import narrowing_bytes, window_of
from server.config import Config
from server.errors import Unsupported
from server.library import Library
from server.pulls.lines import note_line
from server.quality.card import ReferenceNote
from server.quality.frames import ReadSoFar, ReadThrough
from server.quality.reading import FOLDER, SOURCE, meter_process, note_text, prepare, task_of
from server.quality.references import Readable, References, require_memory
from server.quality.wish import QualityWish

Line = dict[str, Any]
_FOLDER, _WEIGHTS = "narrowing", "model.gguf"


class Narrowing:
    """`keep` channels chosen for every layer of the model of a wish; whoever uses it has the turn of measurements.

    After `lines`, `folder` has the channels and `layers` their figures. `weights` is the path of whole weights, ""
    where they are the copy's. `remove` ends it.
    """

    def __init__(self, config: Config, library: Library, wish: QualityWish, keep: int, copy: Model | None) -> None:
        """`copy` has the whole weights; with None they are made of the model's source."""
        self._config, self._library, self._wish, self._keep, self._copy = config, library, wish, keep, copy
        self.folder = config.cache / _FOLDER
        self.layers: list[dict[str, Any]] = []
        self.weights = ""

    async def lines(self) -> AsyncGenerator[Line]:
        """Read the text with the whole weights, and choose; lines for the client.

        Raises Unsupported where whole weights are not within reach, DoesNotFit, and as `References.lines`.
        """
        model, store = self._wish.model, self._library.store
        await asyncio.to_thread(fsops.remove_tree, self.folder)
        await asyncio.to_thread(prepare, self._config, self.folder)
        await asyncio.to_thread(prepare, self._config, self._source)
        size = await self._library.model_size(model)
        window = window_of(size.trained_context)
        more = narrowing_bytes((await self._library.facts(model)).plan, window)
        with ExitStack() as held:
            if self._copy is not None:
                held.enter_context(store.hold([self._copy.blob_digest]))
                await require_memory(size, self._copy.name, self._copy.size, window, more)
                path = self._copy.blob
            else:
                references = References(self._config, self._library, self._wish, self._source, window, more)
                async with aclosing(references.lines()) as lines:
                    async for line in lines:
                        yield line
                path = await asyncio.to_thread(self._named, references.found)
            async with aclosing(self._choose(path, window)) as lines:
                async for line in lines:
                    yield line

    async def remove(self) -> None:
        """Remove the files."""
        for folder in (self.folder, self._source):
            await asyncio.to_thread(fsops.remove_tree, folder)

    @property
    def _source(self) -> Path:
        return self._config.cache / FOLDER / SOURCE

    def _named(self, found: Readable | None) -> Path:
        """The file of the whole weights under a name by which a puller knows it. Raises Unsupported."""
        note: ReferenceNote | None = found.note if found else None
        if found is None or note is None or not note.whole:
            reached = f"{note.name} at {note.level}" if note else "nothing"
            raise Unsupported(
                f"channels are fitted to whole weights; of `{self._wish.model.name}` only {reached} is within reach",
                "pull the model at F16 or BF16, or free memory for it",
            )
        path = self.folder / _WEIGHTS
        with plainly(self._config.cache):
            os.link(found.path, path)
        self.weights = str(path)
        return path

    async def _choose(self, path: Path, window: int) -> AsyncGenerator[Line]:
        if self._wish.text:
            with plainly(self._config.cache):
                await asyncio.to_thread(note_text, self.folder, self._wish.text)
        task = msgspec.structs.replace(task_of(self._wish, "width", path, self.folder, window), count=self._keep)
        async with meter_process(self._config, task) as meter:
            while True:
                match await meter.receive():
                    case ReadSoFar(completed, total):
                        yield {"status": "choosing channels", "phase": "width", "completed": completed, "total": total}
                    case ReadThrough() as read:
                        self.layers = read.figures["layers"]
                        worst = max(self.layers, key=lambda each: each["lost"])
                        yield note_line(self._sentence(worst))
                        return

    def _sentence(self, worst: dict[str, Any]) -> str:
        dead = min(each["dead"] for each in self.layers)
        seconds = sum(each["seconds"] for each in self.layers) / len(self.layers)
        return (
            f"every layer has at least {dead:,} dead channels, which nobody misses; without the others layer "
            f"{worst['layer']} loses most, {worst['lost']:.2%} of its outputs' squares; {seconds:.1f} s for each layer"
        )
