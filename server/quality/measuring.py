"""One measurement: a reference is found, both models read the same windows, and the card goes into the manifest.

Two models are never in memory together: what the reference thinks goes into files in the cache, and the model is read
beside them. A measurement that was interrupted goes on with the windows that are left. The files of one reference are
kept for the next model that is measured against it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Any

from registry.digest import of
from registry.store import fsops, manifest
from registry.store.fsops import plainly
from registry.store.layers import Staged
from runtime.meter.sizes import window_of
from server.config import VERSION, Config
from server.library import Library
from server.pulls.lines import note_line, phase_line
from server.quality.card import card_of
from server.quality.frames import ReadSoFar, ReadThrough, Step
from server.quality.reading import FOLDER, SOURCE, check_text, meter_process, note_text, prepare, task_of
from server.quality.references import TURN, Readable, References, require_memory
from server.quality.wish import QualityWish

Line = dict[str, Any]


async def measure(
    config: Config, library: Library, wish: QualityWish, in_use: Callable[[], set[str]]
) -> AsyncGenerator[Line]:
    """Measure a model; lines for the client, of which the last has the card.

    One measurement goes on at a time. Leaving early keeps the windows that are read. `in_use` gives the digests of
    blobs that must stay. Raises DoesNotFit where the model itself has no room, and as `References.lines`,
    `server/quality/meter.py` and `Store.attach`.
    """
    model, store = wish.model, library.store
    if TURN.locked():
        yield note_line("another measurement goes on; this one waits for its end")
    async with TURN:
        root = config.cache / FOLDER
        await asyncio.to_thread(prepare, config, root / SOURCE)
        size = await library.model_size(model)
        window = window_of(size.trained_context)
        with ExitStack() as held:
            held.enter_context(store.hold([model.blob_digest]))
            await require_memory(size, model.name, model.size, window)
            if wish.text:
                await check_text(config, wish, root, window)
            yield phase_line("looking for a reference")
            references = References(config, library, wish, root / SOURCE, window)
            async with aclosing(references.lines()) as lines:
                async for line in lines:
                    yield line
            assert references.found is not None
            held.enter_context(store.hold([references.found.note.digest]))
            measuring = _Measuring(config, wish, references.found, window, root)
            async with aclosing(measuring.lines()) as lines:
                async for line in lines:
                    yield line
            assert measuring.read is not None
            card = card_of(model, references.found.note, measuring.read, window)
            if wish.keep:
                model = await asyncio.to_thread(store.attach, model, Staged.json(card, manifest.QUALITY))
                await asyncio.to_thread(store.collect, in_use())
        yield {"status": "success", "phase": "done", "model": model.name, "kept": wish.keep, "card": card}


class _Measuring:
    """Both models read; `read` has the figures."""

    def __init__(self, config: Config, wish: QualityWish, reference: Readable, window: int, root: Path) -> None:
        self._config, self._wish, self._reference, self._window, self._root = config, wish, reference, window, root
        mark = f"{reference.note.digest} {of(wish.text.encode(errors='replace'))} {window} {VERSION}"
        self._folder = root / of(mark.encode())[7:39]
        self.read: ReadThrough | None = None

    async def lines(self) -> AsyncGenerator[Line]:
        """Lines while the reference reads, then the model."""
        await asyncio.to_thread(self._begin)
        async with aclosing(self._step("reference", self._reference.path)) as lines:
            async for line in lines:
                yield line
        await asyncio.to_thread(fsops.remove_tree, self._root / SOURCE)
        async with aclosing(self._step("model", self._wish.model.blob)) as lines:
            async for line in lines:
                yield line

    def _begin(self) -> None:
        """Make the folder of the records; records of other references go."""
        with plainly(self._config.cache):
            for other in self._root.iterdir():
                if other.name not in (self._folder.name, SOURCE):
                    fsops.remove_tree(other)
            self._folder.mkdir(mode=0o700, exist_ok=True)
            if self._wish.text:
                note_text(self._folder, self._wish.text)

    async def _step(self, step: Step, path: Path) -> AsyncGenerator[Line]:
        task = task_of(self._wish, step, path, self._folder, self._window, self._reference.note.name)
        async with meter_process(self._config, task) as meter:
            while True:
                match await meter.receive():
                    case ReadSoFar(completed, total):
                        status = f"reading with {'the reference' if step == 'reference' else 'the model'}"
                        yield {"status": status, "phase": step, "completed": completed, "total": total}
                    case ReadThrough() as read:
                        self.read = read
                        return
