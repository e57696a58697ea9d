"""One improvement: statistics, a file of the same size with less error, both measured, and the better one kept.

Each step goes on where an earlier attempt left it: statistics, the file in the making, windows that were read. The
model is served as it was until the last one, a single write of its manifest (`Store.adopt`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import ExitStack, aclosing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from registry.errors import RegistryError, StoreFailed
from registry.names import Reference
from registry.net.hub import Hub
from registry.store import cards, manifest
from registry.store.layers import Staged
from registry.store.model import Model
from runtime.meter.sizes import WINDOWS
from runtime.units import size_text
from server.config import Config
from server.errors import Conflict
from server.improving.suitable import EFFORT, source_for
from server.library import Library
from server.pulls.frames import Statistics
from server.pulls.job import Job, PullOptions
from server.pulls.lines import note_line, phase_line
from server.pulls.pull import Made, Pull
from server.quality.learning import WINDOWS as LEARNT
from server.quality.learning import Learning
from server.quality.measuring import Measurement
from server.quality.wish import QualityWish

Line = dict[str, Any]
# Bytes by which the header may grow: it says what errors were weighed by.
_HEADER = 1 << 16
# Standard errors of the difference by which the new file has to be better.
SURE = 2.0
# The notes of the puller that are about the weights.
_NOTES = ("version", "made_of", "content", "plain", "effort", "statistics", "learned")


@dataclass(frozen=True)
class ImproveWish:
    """Improve `model` by its source, which may be at a `hub`; learn from `text`, "" for lm's own.

    Both files are measured on `windows` of text at most.
    """

    model: Model
    hub: Hub
    text: str = ""
    windows: int = WINDOWS


@dataclass(frozen=True)
class Outcome:
    """The end of an improvement: the model as it is now, a sentence, the cards of the older file and of the new one."""

    model: Model
    state: Literal["better", "no better"]
    sentence: str
    before: dict[str, Any]
    after: dict[str, Any]


def title_of(name: str) -> str:
    """The title of the file that is made for the model of this name."""
    return f"improve {name}"


class Improvement:
    """One improvement; `lines` does it, and `outcome` has its end."""

    def __init__(
        self,
        config: Config,
        library: Library,
        wish: ImproveWish,
        in_use: Callable[[], set[str]],
        retire: Callable[[], Awaitable[None]],
    ) -> None:
        """`in_use` gives the digests of blobs that must stay; `retire` is called when the model was replaced."""
        self._config, self._library, self._store = config, library, library.store
        self._wish, self._in_use, self._retire = wish, in_use, retire
        self.outcome: Outcome | None = None

    async def lines(self) -> AsyncGenerator[Line]:
        """Improve; lines for the client. Leaving early keeps what was done for the next attempt.

        Raises Unsupported, PolicyRefused, Conflict (the source, or the model, has changed), and as `Learning.lines`,
        `Pull.make`, `Measurement.lines`, `Store.adopt`.
        """
        wish, model = self._wish, self._wish.model
        source = source_for(model, self._library.rules)
        with ExitStack() as held:
            held.enter_context(self._store.hold([model.blob_digest]))
            learning = Learning(
                self._config,
                self._library,
                QualityWish(model, wish.hub, text=wish.text, windows=LEARNT),
                grams=True,
            )
            async with aclosing(learning.lines()) as lines:
                async for line in lines:
                    yield line
            assert learning.statistics is not None
            making = _Making(self._config, self._library, wish, source, learning.statistics, self._in_use)
            async with aclosing(making.lines()) as lines:
                async for line in lines:
                    yield line
            if not isinstance(making.made, Made):
                self._settle(model, "no better", "its weights are as good already", {}, {})
                return
            try:
                async with aclosing(self._judge(making.made)) as lines:
                    async for line in lines:
                        yield line
            finally:  # kept for the next attempt, unless it is in its place, or thrown away
                with suppress(RegistryError):
                    await asyncio.shield(asyncio.to_thread(self._store.pause, making.made.ingest))

    async def _judge(self, made: Made) -> AsyncGenerator[Line]:
        """Measure the file that was made beside the model's own, and keep the better one."""
        model, store = self._wish.model, self._store
        variant = _as_model(model, made)
        now = await asyncio.to_thread(self._as_it_is)
        weights = (await asyncio.to_thread(store.contents, now)).layer(manifest.MODEL)
        assert weights is not None
        if variant.size > weights.size + _HEADER:
            sizes = f"{size_text(variant.size)} instead of {size_text(weights.size)}"
            await self._drop(made)
            self._settle(model, "no better", f"the new file takes {sizes}", {}, {})
            return
        wanted = QualityWish(model, self._wish.hub, windows=self._wish.windows)
        measurement = Measurement(self._config, self._library, wanted, (model, variant))
        async with aclosing(measurement.lines()) as lines:
            async for line in lines:
                yield line
        before, after = measurement.cards
        gain, sentence = measurement.gain, _compared(before, after, measurement.gain)
        if not (gain["error"] is not None and gain["value"] > SURE * gain["error"]):
            await self._drop(made)
            await asyncio.to_thread(self._keep_card, before)
            self._settle(
                model, "no better", f"{sentence}: no better by more than the error, so it stays", before, after
            )
            return
        yield phase_line("committing")
        swapping = asyncio.create_task(self._swap(made, before, after, gain))
        try:
            model = await asyncio.shield(swapping)
        except asyncio.CancelledError:
            await asyncio.wait([swapping])  # a commit that has begun is finished
            swapping.exception()
            raise
        self._settle(model, "better", sentence, before, after)
        yield note_line(f"{sentence}; `lm rollback {model.name}` goes back")

    async def _swap(self, made: Made, before: Line, after: Line, gain: Line) -> Model:
        """List the new file in place of the older one, whose manifest is kept. Raises Conflict, as `Store.adopt`."""
        store = self._store

        def swap() -> Model:
            now = self._keep_card(before)
            data = store.manifest(now)[0]
            layers = _layers(now, made, before, after, gain)
            data = manifest.with_layers(data, [each.layer for each in layers], without=(manifest.SIGNATURE,))
            model = store.adopt(made.ingest, data, layers, now.key, f"sha256:{now.digest}", keep_older=True)
            with suppress(StoreFailed):
                store.abandon(made.ingest)
            return model

        model = await asyncio.to_thread(swap)
        await asyncio.to_thread(store.collect, self._in_use())
        await self._retire()
        return model

    def _keep_card(self, card: Line) -> Model:
        """Keep the card of the older file with the model as it is by now. Raises Conflict for other weights."""
        return self._store.attach(self._as_it_is(), Staged.json(card, manifest.QUALITY))

    def _as_it_is(self) -> Model:
        """The model as the store has it by now. Raises Conflict where it is gone, or has other weights."""
        model = self._wish.model
        now = self._store.read(model.key)
        if now is None or now.blob_digest != model.blob_digest:
            what = "was removed" if now is None else "was brought in anew"
            raise Conflict(f"`{model.name}` {what} while it was improved", "nothing of it was changed")
        return now

    async def _drop(self, made: Made) -> None:
        await asyncio.to_thread(self._store.abandon, made.ingest)

    def _settle(self, model: Model, state: Literal["better", "no better"], why: str, before: Line, after: Line) -> None:
        self.outcome = Outcome(model, state, why, before, after)


class _Making:
    """The better file in the making, beside the pulls; `made` is the file, or the model that has such weights."""

    def __init__(
        self,
        config: Config,
        library: Library,
        wish: ImproveWish,
        source: Reference,
        statistics: Statistics,
        in_use: Callable[[], set[str]],
    ) -> None:
        own = wish.model.own
        options = PullOptions(
            wish.hub,
            pre=str(own.get("pre", "")),
            accept_unknown_keys=True,
            effort=EFFORT,
            statistics=statistics,
            content=str(own["content"]),
        )
        self._job = Job(source, options)
        title = title_of(wish.model.name)
        self._pull = Pull(self._job, config, library.store, in_use, rules=library.rules, beside=title)
        self.made: Made | Model | None = None

    async def lines(self) -> AsyncGenerator[Line]:
        """Make it; lines for the client. Raises as `Pull.make`."""
        making = asyncio.create_task(self._pull.make())
        making.add_done_callback(lambda _: self._job.end())
        try:
            async with aclosing(self._job.lines()) as lines:
                async for line in lines:
                    yield line
            self.made = await making
        finally:
            making.cancel()
            await asyncio.wait([making])
            if not making.cancelled():
                making.exception()  # asked for, or asyncio logs a traceback


def _as_model(model: Model, made: Made) -> Model:
    """The file that was made as a model, to be measured beside `model`."""
    done = made.done
    return replace(
        model,
        name=f"{model.name} (improved)",
        digest="",
        size=done.size,
        config=done.config,
        blob=made.ingest.data,
        blob_digest=f"sha256:{done.sha256}",
        card={},
    )


def _layers(now: Model, made: Made, before: Line, after: Line, gain: Line) -> list[Staged]:
    """The layers of the improved model that are new: its weights, its config with the notes, its card."""
    done = made.done
    improved = {
        "older": now.digest,
        "was": sorted(now.digests),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "before": before["mean"],
        "after": after["mean"],
        "gain": gain,
    }
    notes = {key: done.config["lm"][key] for key in _NOTES if key in done.config["lm"]}
    config = now.config | {"lm": now.own | notes | {"improved": improved}}
    weights = Staged.file(made.ingest.data, manifest.MODEL, done.sha256, done.size)
    card = cards.checked(after, weights.layer.digest)
    return [weights, Staged.json(card, manifest.QUALITY), Staged.json(config, manifest.CONFIG)]


def _compared(before: Line, after: Line, gain: Line) -> str:
    """Both divergences, and their difference, in a sentence."""
    error = "" if gain["error"] is None else f" ± {gain['error']:.2g}"
    both = " → ".join(f"{card['mean']['value']:.4g}" for card in (before, after))
    return f"KL divergence {both} (less by {gain['value']:.3g}{error})"
