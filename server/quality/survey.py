"""A survey of a model that is here: what its parts do on a text. The figures are small, and stay in the cache."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from registry.digest import of
from registry.store import fsops
from registry.store.fsops import plainly
from runtime.meter.sizes import collecting_bytes, window_of
from server.config import VERSION, Config
from server.library import Library
from server.pulls.lines import note_line
from server.quality.frames import ReadSoFar, ReadThrough, Step
from server.quality.reading import meter_process, note_text, prepare, task_of
from server.quality.references import require_memory
from server.quality.turn import taken, turn
from server.quality.wish import QualityWish

Line = dict[str, Any]
_FOLDER, _TEXT_FOLDER, _KEPT = "surveys", "text", 32
_STATUS: dict[Step, str] = {
    "experts": "reading what each expert adds",
    "layers": "reading without one layer or another",
}


class ModelSurvey:
    """A survey of the model of a wish, `step`; `lines` makes it, and `found` has its figures then."""

    def __init__(self, config: Config, library: Library, wish: QualityWish, step: Step, count: int = 0) -> None:
        """`count` parts are chosen, where the step chooses.

        `wish.text` is the user's text, "" for lm's calibration text; the wish's reference counts for nothing.
        """
        self._config, self._library, self._wish, self._step = config, library, wish, step
        self._count = count
        self._root = config.cache / _FOLDER
        mark = (
            f"{step} {count} {wish.model.blob_digest} {of(wish.text.encode(errors='replace'))} {wish.windows} {VERSION}"
        )
        self._file = self._root / f"{of(mark.encode())[7:39]}.json"
        self.found: dict[str, Any] = {}

    async def lines(self) -> AsyncGenerator[Line]:
        """ModelSurvey the model, unless the cache knows it; lines for the client.

        Raises DoesNotFit where the model has no room, and as `server/quality/meter.py`.
        """
        model, store = self._wish.model, self._library.store
        if taken():
            yield note_line("another measurement goes on; this one waits for its end")
        async with turn():
            if await asyncio.to_thread(self._known):
                return
            size = await self._library.model_size(model)
            window = window_of(size.trained_context)
            with store.hold([model.blob_digest]):
                more = collecting_bytes((await self._library.facts(model)).plan, size.vocabulary, window)
                await require_memory(size, model.name, model.size, window, more)
                async with aclosing(self._read(window)) as lines:
                    async for line in lines:
                        yield line

    async def _read(self, window: int) -> AsyncGenerator[Line]:
        folder = self._root / _TEXT_FOLDER
        await asyncio.to_thread(prepare, self._config, folder)
        if self._wish.text:
            with plainly(self._config.cache):
                await asyncio.to_thread(note_text, folder, self._wish.text)
        task = task_of(self._wish, self._step, self._wish.model.blob, folder, window)
        task = msgspec.structs.replace(task, count=self._count)
        async with meter_process(self._config, task) as meter:
            while True:
                match await meter.receive():
                    case ReadSoFar(completed, total):
                        status = _STATUS[self._step]
                        yield {"status": status, "phase": self._step, "completed": completed, "total": total}
                    case ReadThrough() as read:
                        self.found = read.figures
                        await asyncio.to_thread(self._keep)
                        return

    def _known(self) -> bool:
        """Take the figures of the cache, if it has them."""
        try:
            self.found = msgspec.json.decode(self._file.read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.MsgspecError):
            return False
        return True

    def _keep(self) -> None:
        with plainly(self._config.cache):
            fsops.replace(self._file, msgspec.json.encode(self.found))
            others = [each for each in self._root.glob("*.json") if each != self._file]
            for each in others if len(others) >= _KEPT else ():  # which one was used last is not worth knowing
                fsops.unlink(each)
