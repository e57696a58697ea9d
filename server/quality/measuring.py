"""One measurement: a reference is found, both models read the same windows, and the card goes into the manifest.

Two models are never in memory together: what the reference thinks goes into files in the cache, and the model is read
beside them. A measurement that was interrupted goes on with the windows that are left. The files of one reference are
kept for the next model that is measured against it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from registry.digest import of
from registry.store import fsops, manifest
from registry.store.fsops import plainly
from registry.store.layers import Staged
from registry.store.model import Model
from runtime.meter.sizes import window_of
from server.config import VERSION, Config
from server.library import Library
from server.pulls.lines import note_line, phase_line
from server.quality.card import card_of
from server.quality.frames import MeterTask, ReadSoFar, ReadThrough
from server.quality.reading import FOLDER, SOURCE, check_text, meter_process, note_text, prepare, task_of
from server.quality.references import Readable, References, require_memory
from server.quality.turn import taken, turn
from server.quality.wish import QualityWish

Line = dict[str, Any]


async def measure(
    config: Config, library: Library, wish: QualityWish, in_use: Callable[[], set[str]]
) -> AsyncGenerator[Line]:
    """Measure a model; lines for the client, of which the last has the card.

    `in_use` gives the digests of blobs that must stay. Raises as `Measurement.lines` and `Store.attach`.
    """
    measurement, model = Measurement(config, library, wish, (wish.model,)), wish.model
    async with aclosing(measurement.lines()) as lines:
        async for line in lines:
            yield line
    (card,) = measurement.cards
    if wish.keep:
        model = await asyncio.to_thread(library.store.attach, model, Staged.json(card, manifest.QUALITY))
        await asyncio.to_thread(library.store.collect, in_use())
    yield {"status": "success", "phase": "done", "model": model.name, "kept": wish.keep, "card": card}


class Measurement:
    """Models that read the same windows as one reference, one after the other; `cards` has their cards then.

    `gain` is how much less the last model diverges than the one before it. It is their difference window by window,
    whose error is smaller than the error of either.
    """

    def __init__(self, config: Config, library: Library, wish: QualityWish, models: Sequence[Model]) -> None:
        """`models` are files of the model of `wish`, whose reference is theirs."""
        self._config, self._library, self._wish, self._models = config, library, wish, models
        self._root = config.cache / FOLDER
        self.cards: list[dict[str, Any]] = []
        self.gain: dict[str, Any] = {}

    async def lines(self) -> AsyncGenerator[Line]:
        """Lines while the reference reads, then each model.

        One measurement goes on at a time. Leaving early keeps the windows that are read. Raises DoesNotFit where a
        model has no room, and as `References.lines` and `server/quality/meter.py`.
        """
        config, library, wish, model = self._config, self._library, self._wish, self._wish.model
        if taken():
            yield note_line("another measurement goes on; this one waits for its end")
        async with turn():
            await asyncio.to_thread(prepare, config, self._root / SOURCE)
            size = await library.model_size(model)
            window = window_of(size.trained_context)
            with ExitStack() as held:
                held.enter_context(library.store.hold([each.blob_digest for each in self._models]))
                await require_memory(size, model.name, model.size, window)
                if wish.text:
                    await check_text(config, wish, self._root, window)
                yield phase_line("looking for a reference")
                references = References(config, library, wish, self._root / SOURCE, window)
                async with aclosing(references.lines()) as lines:
                    async for line in lines:
                        yield line
                assert references.found is not None
                held.enter_context(library.store.hold([references.found.note.digest]))
                async with aclosing(self._read(references.found, window)) as lines:
                    async for line in lines:
                        yield line

    async def _read(self, reference: Readable, window: int) -> AsyncGenerator[Line]:
        """Lines while all read."""
        mark = f"{reference.note.digest} {of(self._wish.text.encode(errors='replace'))} {window} {VERSION}"
        folder = self._root / of(mark.encode())[7:39]
        await asyncio.to_thread(self._begin, folder)
        task = task_of(self._wish, "reference", reference.path, folder, window, reference.note.name)
        async with aclosing(self._step(task)) as lines:
            async for line in lines:
                if not isinstance(line, ReadThrough):
                    yield line
        await asyncio.to_thread(fsops.remove_tree, self._root / SOURCE)
        before = ""
        for model in self._models:
            task = task_of(replace(self._wish, model=model), "model", model.blob, folder, window, reference.note.name)
            async with aclosing(self._step(msgspec.structs.replace(task, before=before))) as lines:
                async for line in lines:
                    if isinstance(line, ReadThrough):
                        self.cards.append(card_of(model, reference.note, line, window))
                        self.gain = line.gain
                    else:
                        yield line
            before = task.digest

    def _begin(self, folder: Path) -> None:
        """Make the folder of the records; records of other references go."""
        with plainly(self._config.cache):
            for other in self._root.iterdir():
                if other.name not in (folder.name, SOURCE):
                    fsops.remove_tree(other)
            folder.mkdir(mode=0o700, exist_ok=True)
            if self._wish.text:
                note_text(folder, self._wish.text)

    async def _step(self, task: MeterTask) -> AsyncGenerator[Line | ReadThrough]:
        who = "the reference" if task.step == "reference" else "the model"
        # Two models of one measurement are two phases.
        phase = "improved" if task.before else task.step
        async with meter_process(self._config, task) as meter:
            while True:
                match await meter.receive():
                    case ReadSoFar(completed, total):
                        status = f"reading with {'the new file' if task.before else who}"
                        yield {"status": status, "phase": phase, "completed": completed, "total": total}
                    case ReadThrough() as read:
                        yield read
                        return
