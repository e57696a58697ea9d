"""The reference of a measurement: the source of its weights where that runs here, else the best level that does."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quant.errors import UnknownLevel, UnsupportedModel
from registry.digest import of
from registry.errors import AccessDenied, BadName, ModelNotFound, Offline, SourceUnavailable
from registry.names import Reference, parse
from registry.store.model import Model
from registry.store.partial import DATA
from runtime.errors import DoesNotFit
from runtime.machine.fit import ModelSize
from runtime.machine.hardware import detect
from runtime.messages import CacheConfig
from runtime.meter.sizes import reading_bytes
from runtime.units import size_text
from server.children.child_log import log_file
from server.children.daemon_side import task_process
from server.config import Config
from server.errors import ChildError, Conflict, Unsupported
from server.library import Library
from server.logins import read_logins
from server.pulls.frames import Done, FromPuller, ModelRequest, Planned, PullTask
from server.pulls.lines import frame_line, note_line
from server.pulls.pull import NICE
from server.quality.card import ReferenceNote
from server.quality.wish import QualityWish

Line = dict[str, Any]
# Levels at which a source is a reference, the best first. F32 is exact for every source, and twice the size of most.
LADDER = ("F32", "BF16", "Q8_0", "Q6_K", "Q5_K_M")
_MOST_F32 = 4 << 30
# Errors of a puller that say no more than that the source has no such level.
_NO_LEVEL = (UnknownLevel.code, UnsupportedModel.code, DoesNotFit.code)
# Errors that say that the model's own source is not within reach: the best level here takes its place.
_NO_SOURCE = (ModelNotFound.code, SourceUnavailable.code, Offline.code, AccessDenied.code)


@dataclass(frozen=True)
class Readable:
    """A reference that can be read: its note, and its file."""

    note: ReferenceNote
    path: Path


async def require_memory(size: ModelSize, name: str, weights: int, window: int, more: int = 0) -> None:
    """Raise DoesNotFit where a model of this size, with `weights` bytes of weights and N `more`, cannot be read now."""
    need = reading_bytes(size, weights, window) + more
    free = (await asyncio.to_thread(detect, 1.0)).memory_available
    if need > free:
        raise DoesNotFit(
            f"reading with `{name}` needs {size_text(need)} of memory, and {size_text(free)} are free",
            "`lm unload` frees the memory of loaded models; or close other programs",
        )


class References:
    """The search for a reference; `lines` finds one, and `found` has it."""

    def __init__(
        self, config: Config, library: Library, wish: QualityWish, folder: Path, window: int, more: int = 0
    ) -> None:
        """`folder` is for the reference's file; reading it takes N `more` bytes of memory than windows do."""
        self._config, self._library, self._wish, self._folder, self._window = config, library, wish, folder, window
        self._more = more
        self.found: Readable | None = None

    async def lines(self) -> AsyncGenerator[Line]:
        """Lines for the client while a reference is looked for.

        Raises DoesNotFit where none runs here, Unsupported where nobody knows any, Conflict where the source is another
        one by now, and as a puller.
        """
        wish, model = self._wish, self._wish.model
        against = wish.against
        if isinstance(against, Model):
            self.found = await self._installed(against, "it was named")
            return
        source = against or self.own_source()
        if source is not None:
            why = "it was named" if against else "it is the source of the weights"
            async for line in self._from_source(source, why, pinned=against is None):
                yield line
        if self.found is None and against is None and (best := await self._best_here()):
            why = "its source is not within reach or does not run here, and this is the best level of it that does"
            self.found = await self._installed(best, why)
        if self.found is None:
            raise Unsupported(
                f"there is nothing to measure `{model.name}` against: its source is not known, not within "
                "reach, or does not run here, and no better level of it is here",
                "name a file of the same model: `--against NAME`; or bring in a better level",
            )

    def own_source(self) -> Reference | None:
        """The source that a model was made of; None where it was published as it is, or nobody knows."""
        own = self._wish.model.own
        text = "" if own.get("published") else str(own.get("source") or "")
        with suppress(BadName):
            return parse(text) if text else None
        return None

    async def here(self) -> Readable:
        """The largest level of the model that is here and runs, which may be the model itself. Raises DoesNotFit."""
        if best := await self._best_here():
            return await self._installed(best, "it is the best level here")
        model = self._wish.model
        await self._require(model.name, model.size)
        level = str(model.config.get("file_type") or "")
        return Readable(ReferenceNote(model.name, level, "no better level is here", model.blob_digest), model.blob)

    async def _best_here(self) -> Model | None:
        """The largest level of the model here that is larger than the model itself."""
        model = self._wish.model
        bare = [each for each in await self._library.models() if each.key.tagged(None).same(model.key.tagged(None))]
        better = [each for each in bare if not (each.problem or each.is_adapter) and each.size > model.size]
        for each in sorted(better, key=lambda each: each.size, reverse=True):
            with suppress(DoesNotFit):
                await self._require(each.name, each.size)
                return each
        return None

    async def _installed(self, model: Model, why: str) -> Readable:
        """A model that is here as reference. Raises DoesNotFit."""
        if model.blob_digest == self._wish.model.blob_digest:
            raise Unsupported(f"`{model.name}` has the same weights", "name another file of the model")
        await self._require(model.name, model.size)
        level = str(model.config.get("file_type") or "")
        return Readable(ReferenceNote(model.name, level, why, model.blob_digest), model.blob)

    async def _require(self, name: str, weights: int) -> None:
        size = await self._library.model_size(self._wish.model)
        await require_memory(size, name, weights, self._window, self._more)

    async def _from_source(self, source: Reference, why: str, *, pinned: bool) -> AsyncGenerator[Line]:
        """Make the reference's file of a source, at the best level that runs here; `found` stays None where none does.

        `pinned`: the source has to be what the model was made of.
        """
        self._library.rules.check_source(source.origin)
        for level in LADDER:
            try:
                async for line in self._at(source, level, why, pinned):
                    yield line
            except DoesNotFit as error:
                yield note_line(f"{source.text} at {level} is no reference: {error}")
                continue
            except ChildError as error:
                if pinned and error.code in _NO_SOURCE:
                    yield note_line(f"{source.text} is no reference: {error}")
                    return
                if error.code not in _NO_LEVEL:
                    raise
                yield note_line(f"{source.text} at {level} is no reference: {error}")
                continue
            return

    async def _at(self, source: Reference, level: str, why: str, pinned: bool) -> AsyncGenerator[Line]:
        """Plan the source at a level; make its file where it fits and is better than the model. Raises DoesNotFit."""
        model, folder = self._wish.model, self._folder
        task = await asyncio.to_thread(self._task, source, level)
        purpose, log = f"makes the reference of `{model.name}`", log_file(self._config.logs, "puller")
        process = task_process("server.pulls.puller", task, frames=FromPuller, log=log, purpose=purpose, nice=NICE)
        digest = ""
        async with process as puller:
            while True:
                match await puller.receive():
                    case Done() as done:
                        note = ReferenceNote(source.origin, level, why, digest or f"sha256:{done.sha256}")
                        self.found = Readable(note, folder / DATA)
                        return
                    case Planned() as planned:
                        self._check(planned, source, level, pinned)
                        await self._require(f"{source.origin} at {level}", planned.output_bytes)
                        digest = of(f"{planned.made_of} {level}".encode())
                        size = size_text(planned.source_bytes)
                        yield note_line(f"reference: {source.origin} at {level} ({why}); {size} of weights are read")
                    case frame:
                        yield frame_line(frame)

    def _check(self, planned: Planned, source: Reference, level: str, pinned: bool) -> None:
        """Raise Conflict where the source has changed, DoesNotFit where the level is no better, or too large."""
        model = self._wish.model
        before = model.own.get("content")
        if pinned and before and planned.content and before != planned.content:
            raise Conflict(
                f"the source of `{model.name}`, `{source.origin}`, has changed since the model was made of it",
                f"`lm pull {source.origin}` makes the model anew; `--against {source.origin}` measures it all the same",
            )
        if level == LADDER[0] and planned.output_bytes > _MOST_F32:
            raise DoesNotFit(f"it would take {size_text(planned.output_bytes)}")
        if planned.output_bytes <= model.size and level not in LADDER[:2]:
            raise DoesNotFit(f"it is no better than `{model.name}`")

    def _task(self, source: Reference, level: str) -> PullTask:
        bare = replace(source, level=None, name=source.name.tagged(None)) if not source.registry else source
        reference = source if source.registry else parse(f"{bare.text}:{level}")
        hub = self._wish.hub
        return PullTask(
            model=ModelRequest(
                source=reference.text,
                hub=replace(hub, logins=read_logins(self._config)) if reference.registry else hub,
                cache_folder=str(self._config.cache),
                disk_free=shutil.disk_usage(self._folder).free,
                cache_config=CacheConfig(self._window, 1),
            ),
            folder=str(self._folder),
            pre=str(self._wish.model.own.get("pre", "")),
            accept_unknown_keys=True,
            sharing="copy",
            rules=self._library.rules,
        )
