"""Statistics of a model's inputs, by which a quantizer weighs errors: collected on a text, and kept in the cache.

The weights that read the text are the source's where it lies on this machine; else the best level that is here, so that
nothing is fetched twice. Statistics are the source's, whatever level is made with them later; so they are kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from quant.errors import BadImportance
from quant.levels.harms import MeasuredHarms
from quant.types import QuantType
from registry.digest import of
from registry.store import fsops
from registry.store.fsops import plainly
from runtime.machine.hardware import usable_cpus
from runtime.machine.rates import Rates
from runtime.machine.step_time import slowness
from runtime.meter.sizes import collecting_bytes, gram_bytes, harms_bytes, harms_file, window_of
from server.config import VERSION, Config
from server.errors import Unsupported
from server.library import Library
from server.pulls.frames import Statistics
from server.pulls.lines import note_line, phase_line
from server.pulls.origin import is_local
from server.quality.card import ReferenceNote
from server.quality.frames import ReadSoFar, ReadThrough, Step
from server.quality.reading import FOLDER, SOURCE, check_text, meter_process, note_text, prepare, task_of
from server.quality.references import Readable, References, require_memory
from server.quality.turn import taken, turn
from server.quality.wish import QualityWish

Line = dict[str, Any]
# Windows of text that statistics are collected on, at most.
WINDOWS = 32
_STATISTICS, _KEPT = "statistics", 8
_NOTE = "statistics.json"
# Levels whose weights are fine enough to try coarser types on.
_FINE = ("F32", "BF16", "F16", "Q8_0")
_DOING = {
    "statistics": "collecting statistics",
    "grams": "collecting Gram matrices",
    "harms": "trying what each type does to the output",
}
_DONE, _GRAMS = "importance.gguf", "grams.gguf"  # as `runtime/meter/learning.py` calls them


class Learning:
    """Statistics of the model of a wish; `lines` collects them, and `statistics` has them then."""

    def __init__(
        self,
        config: Config,
        library: Library,
        wish: QualityWish,
        *,
        grams: bool = False,
        harms: bool = False,
        speed: bool = False,
    ) -> None:
        """`wish.text` is the user's text, "" for lm's calibration text; the wish's reference counts for nothing.

        With `grams` the Gram matrices of inputs are collected too; the cache has the matrices of one model at a time.
        With `harms` it is measured what each type of each matrix would do to the output (`quant/levels/harms.py`), and
        with `speed` how slowly this machine reads each type.
        """
        self._grams, self._harms, self._speed = grams, harms, harms and speed
        self._config, self._library, self._wish = config, library, wish
        self._root, self._rates = config.cache / FOLDER, Rates(config.cache, usable_cpus())
        model = wish.model
        origin = str(model.own.get("content") or model.blob_digest)
        mark = f"{origin} {of(wish.text.encode(errors='replace'))} {wish.windows} {VERSION}"
        self._folder = config.cache / _STATISTICS / of(mark.encode())[7:39]
        self.statistics: Statistics | None = None

    async def lines(self) -> AsyncGenerator[Line]:
        """Collect, unless the cache has them; lines for the client. Leaving early keeps what is collected.

        Raises as `server.quality.measuring.measure`.
        """
        model, store = self._wish.model, self._library.store
        if taken():
            yield note_line("another measurement goes on; this one waits for its end")
        async with turn():
            if self._speed and self._rates.stale():
                yield note_line("measuring how fast this machine reads weights; takes about 10 s, once")
                await asyncio.to_thread(self._rates.measure)
            if await asyncio.to_thread(self._found):
                yield note_line(f"the statistics are here already: {self._folder / _DONE}")
                return
            await asyncio.to_thread(prepare, self._config, self._root / SOURCE)
            size = await self._library.model_size(model)
            window = window_of(size.trained_context)
            with ExitStack() as held:
                held.enter_context(store.hold([model.blob_digest]))
                plan = (await self._library.facts(model)).plan
                more = collecting_bytes(plan, size.vocabulary, window)
                more = max(more, gram_bytes(plan, window)) if self._grams else more
                more = max(more, harms_bytes(plan)) if self._harms else more
                await require_memory(size, model.name, model.size, window, more)
                if self._wish.text:
                    await check_text(self._config, self._wish, self._root, window)
                references = References(self._config, self._library, self._wish, self._root / SOURCE, window, more)
                async with aclosing(self._search(references)) as lines:
                    async for line in lines:
                        yield line
                readable = references.found or await references.here()
                held.enter_context(store.hold([readable.note.digest]))
                note = readable.note
                yield note_line(f"statistics are collected with {note.name} at {note.level}: {note.why}")
                for step in self._steps():
                    if step == "harms" and note.level not in _FINE:
                        await asyncio.to_thread(self._say_why_none, note)
                        continue
                    async with aclosing(self._collect(readable, window, step)) as lines:
                        async for line in lines:
                            yield line
                await asyncio.to_thread(self._take)
            await asyncio.to_thread(fsops.remove_tree, self._root / SOURCE)

    async def _search(self, references: References) -> AsyncGenerator[Line]:
        """Make the file of the source where that lies on this machine; `references.found` is None elsewhere."""
        source = references.own_source()
        if source is None or not is_local(source):
            return
        yield phase_line("looking for the source")
        try:
            async with aclosing(references.lines()) as lines:
                async for line in lines:
                    yield line
        except Unsupported:  # neither the source nor a better level can be read
            return

    def _steps(self) -> list[Step]:
        """The steps that are left. Gram matrices of other models go: they are large."""
        steps: list[Step] = [] if self._noted() else ["statistics"]
        if self._grams and not (self._folder / _GRAMS).is_file():
            for other in (self._config.cache / _STATISTICS).glob(f"*/{_GRAMS}*"):
                if other.parent != self._folder:
                    fsops.unlink(other)
            steps.append("grams")
        return [*steps, "harms"] if self._harms and not self._measured() else steps

    def _say_why_none(self, note: ReferenceNote) -> None:
        """Leave a file without harms: they need fine weights."""
        why = f"the text was read with {note.name} at {note.level}, and only finer weights show what a type changes"
        with plainly(self._config.cache):
            fsops.replace(self._folder / harms_file(fed=self._grams), MeasuredHarms(missing=why).data)

    async def _collect(self, readable: Readable, window: int, step: Step) -> AsyncGenerator[Line]:
        await asyncio.to_thread(self._begin)
        task = task_of(self._wish, step, readable.path, self._folder, window, readable.note.name)
        task = msgspec.structs.replace(task, fed=self._grams, kernels=str(self._config.cache / "kernels"))
        async with meter_process(self._config, task) as meter:
            while True:
                match await meter.receive():
                    case ReadSoFar(completed, total):
                        yield {"status": _DOING[step], "phase": step, "completed": completed, "total": total}
                    case ReadThrough() as read:
                        if step == "statistics":
                            await asyncio.to_thread(self._end, read)
                        file = {"statistics": _DONE, "grams": _GRAMS}.get(step, harms_file(fed=self._grams))
                        yield note_line(f"the {step} are kept: {self._folder / file}")
                        return

    def _begin(self) -> None:
        prepare(self._config, self._folder)
        if self._wish.text:
            with plainly(self._config.cache):
                note_text(self._folder, self._wish.text)

    def _end(self, read: ReadThrough) -> None:
        """Note whose text it was, and throw older statistics away."""
        with plainly(self._config.cache):
            own = Statistics(str(self._folder / _DONE), f"the importance of {read.text_name}", read.marks)
            fsops.replace(self._folder / _NOTE, msgspec.json.encode(own))
            others = sorted(self._folder.parent.iterdir(), key=lambda each: each.stat().st_mtime, reverse=True)
            for old in others[_KEPT:]:
                fsops.remove_tree(old)

    def _found(self) -> bool:
        """Take the statistics of the cache, if it has them whole."""
        if self._steps():
            return False
        self._take()
        return True

    def _take(self) -> None:
        """Take what the cache has."""
        found = self._noted()
        grams = str(self._folder / _GRAMS) if self._grams else ""
        harms = self._with_speed(self._folder / harms_file(fed=self._grams)) if self._harms else ""
        self.statistics = found and msgspec.structs.replace(found, grams=grams, harms=str(harms))

    def _with_speed(self, harms: Path) -> Path:
        """The file of harms; one that says how slowly types are read, where speed counts and that is known."""
        probed = self._rates.known() if self._speed else None
        if probed is None:
            return harms
        slow = {QuantType[name]: factor for name, factor in slowness(probed).items()}
        target = harms.with_name(f"speed-{harms.name}")
        with plainly(self._config.cache):
            fsops.replace(target, replace(MeasuredHarms.read(harms), slowness=slow).data)
        return target

    def _measured(self) -> bool:
        """Whether the cache has harms."""
        try:
            return bool(MeasuredHarms.read(self._folder / harms_file(fed=self._grams)).expected)
        except (OSError, BadImportance):
            return False

    def _noted(self) -> Statistics | None:
        """The importance that the cache has."""
        try:
            if (self._folder / _DONE).is_file():
                return msgspec.json.decode((self._folder / _NOTE).read_bytes(), type=Statistics)
        except (OSError, msgspec.MsgspecError):
            pass
        return None
