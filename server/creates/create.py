"""A new model, from the wish for it to its manifest.

Nothing of a model that is here is copied: its layers are listed once more. Small texts are new, and a file where
weights are converted or quantized. The manifest is written last, so a model is there whole or not at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, suppress
from datetime import UTC, datetime
from typing import Any

from quant.errors import QuantError
from quant.gguf.adapter import check_adapter, check_base
from quant.gguf.check import check_model
from quant.gguf.header import read_file
from quant.plan import ModelPlan
from registry.errors import RegistryError
from registry.store import manifest
from registry.store.catalog import Model
from registry.store.layers import Staged
from registry.store.leases import SECONDS
from registry.store.manifest import Layer
from registry.store.store import Store
from runtime.errors import BadRequest
from runtime.text.gotemplate.chat import GoTemplate
from server.config import VERSION, Config
from server.creates.cutting import check, completed, remark
from server.creates.making import Making, MakingMeans
from server.creates.wish import CreateWish
from server.library import Library, source_noted, source_of
from server.pulls.frames import Done
from server.pulls.lines import note_line, success_line

log = logging.getLogger("lm.creates")
# Layers that are about the file of weights.
_OF_WEIGHTS = {manifest.MODEL, manifest.QUALITY, manifest.SIGNATURE}
_TEXTS = (manifest.SYSTEM, manifest.TEMPLATE, manifest.LICENSE, manifest.PARAMS, manifest.MESSAGES)


class Create:
    """One model in the making; `lines` does it."""

    def __init__(
        self,
        wish: CreateWish,
        config: Config,
        library: Library,
        in_use: Callable[[], set[str]],
        *,
        check: bool,
    ) -> None:
        """`in_use` gives the digests of blobs that must stay. With `check`, llama.cpp tries a file that was made."""
        self._wish, self._config, self._library, self._in_use, self._check = wish, config, library, in_use, check
        self._store: Store = library.store
        self._rules = library.rules
        self._title = f"create {wish.name.display}"
        self._new: list[Staged] = []
        self._layers: list[Layer] = []
        self._config_blob: dict[str, Any] = {}
        self._params: dict[str, Any] = {}
        self._weights: Making | None = None

    async def lines(self) -> AsyncGenerator[dict[str, Any]]:
        """Make the model; lines in Ollama's form, of which the last is `success`.

        Raises as `Making.lines` and `Store.adopt`, PolicyRefused. Leaving early leaves nothing behind.
        """
        wish, store = self._wish, self._store
        self._rules.check_source(self._base_source())
        self._rules.check_source("")
        async with AsyncExitStack() as held:
            base = await asyncio.to_thread(store.contents, wish.model) if wish.model else None
            held.enter_context(store.hold([*wish.uploads, *(base.digests if base else ())]))
            if base is None or wish.anew:
                async with aclosing(self._make_weights(self._making(held, self._title), base)) as lines:
                    async for line in lines:
                        yield line
            if base is not None and wish.model is not None:
                self._inherit(base, wish.model, anew=wish.anew)
                for layer in self._layers:
                    yield _status(f"using existing layer {layer.digest}")
            if wish.adapters:
                adapter = self._making(held, f"{self._title}, its adapter")
                async with aclosing(adapter.lines(wish.adapters, None, MakingMeans(wish.base_source))) as lines:
                    async for line in lines:
                        yield line
                await self._take(adapter, manifest.ADAPTER)
                await self._check_fit(adapter, self._weights)
            if wish.draft_files:
                draft = self._making(held, f"{self._title}, its draft")
                async with aclosing(draft.lines(wish.draft_files, wish.draft_level)) as lines:
                    async for line in lines:
                        yield line
                self._drop(manifest.DRAFT)
                await self._take(draft, manifest.DRAFT)
                await self._check_draft(draft)
            if wish.draft is not None:
                self._drop(manifest.DRAFT)
                await self._check_draft(None)
            self._add_own()
            for staged in self._new:
                yield _status(f"creating new layer {staged.layer.digest}")
            yield _status("writing manifest", "committing")
            model = await self._commit()
        store.leases.release(wish.uploads)
        await asyncio.to_thread(store.collect, self._in_use())
        yield success_line(model.name, model.digest)

    async def _make_weights(self, weights: Making, base: manifest.Manifest | None) -> AsyncGenerator[dict[str, Any]]:
        """Make the file of the weights; lines while it goes on."""
        wish, self._weights = self._wish, weights
        source, cut = wish.path or wish.files, wish.cut
        if wish.model is not None and base is not None and not wish.path and (layer := base.layer(manifest.MODEL)):
            source = {"model.gguf": layer.digest}
            cut = await completed(self._config, wish, wish.model.blob)
        async with aclosing(
            weights.lines(source, wish.level, MakingMeans(cut=cut, statistics=wish.statistics))
        ) as lines:
            async for line in lines:
                yield line
        await self._take(weights, manifest.MODEL)
        if wish.cuts and wish.model is not None and weights.ingest is not None:
            compared = await check(self._config, wish, wish.model.blob, weights.ingest.data)
            if compared:
                yield note_line(f"{compared:,} tokens of text are the same as before")
            if wish.sample and (warning := remark(compared)):
                yield note_line(warning)

    def _base_source(self) -> str:
        """The source of the base model or the files, as rules know it."""
        if self._wish.model is not None:
            return source_of(self._wish.model)
        return "" if self._wish.origin is None else source_noted({"source": self._wish.origin})

    def _making(self, held: AsyncExitStack, title: str) -> Making:
        """A file in the making, whose ingest goes at the end."""
        making = Making(self._config, self._store, title, check=self._check, rules=self._rules)

        async def abandon() -> None:
            if making.ingest is not None:
                with suppress(RegistryError):
                    await asyncio.shield(asyncio.to_thread(self._store.abandon, making.ingest))

        held.push_async_callback(abandon)
        return making

    async def _take(self, making: Making, kind: str) -> None:
        """Take over the file that was made, and what came with it."""
        assert making.done is not None and making.ingest is not None
        done: Done = making.done
        if done.adapter != (kind == manifest.ADAPTER):
            what = "is an adapter: name its model with FROM" if done.adapter else "is a model, and no adapter"
            raise BadRequest(f"what was sent {what}", "an adapter goes into `adapters`, or behind ADAPTER", "files")
        file = Staged.file(making.ingest.data, kind, done.sha256, done.size, done.shared)
        self._new.append(file)
        if kind == manifest.MODEL:
            self._config_blob, self._params = dict(done.config), dict(done.params)
            texts = [(done.system, manifest.SYSTEM), (done.template, manifest.TEMPLATE)]
            texts += [(text, manifest.LICENSE) for text in done.licenses]
            self._new += [Staged.text(text, media) for text, media in texts if text]
            self._new += [Staged.messages(done.messages, manifest.MESSAGES)] if done.messages else []

    def _inherit(self, base: manifest.Manifest, model: Model, *, anew: bool) -> None:
        """Take over the layers of the model that this one is made of, but for weights that were made anew."""
        drafts = {manifest.DRAFT} if self._wish.cuts else set()  # its draft would guess tokens by other ids
        replaced = {manifest.PARAMS} | (_OF_WEIGHTS if anew else set()) | drafts
        self._layers = [layer for layer in base.layers if layer.media_type not in replaced]
        made, before = self._config_blob, dict(model.config)
        self._config_blob = before
        if anew:  # the file is another one; the template, and what the model can do by it, are the same
            kept = {key: model.own.get(key, "") for key in ("template", *(() if drafts else ("draft",)))}
            notes = {**made.get("lm", {}), **kept}
            able = before.get("capabilities") or made.get("capabilities")
            self._config_blob = {**before, **made, "capabilities": able, "lm": notes}
        self._params = self._params | dict(model.params)

    def _add_own(self) -> None:
        """Add the wish's own settings and texts, in the place of inherited ones."""
        wish = self._wish
        for text, media in ((wish.system, manifest.SYSTEM), (wish.template, manifest.TEMPLATE)):
            if text is not None:
                self._drop(media)
                self._new += [Staged.text(text, media)] if text else []
        have = {layer.digest for layer in self._layers}
        licenses = [Staged.text(text, manifest.LICENSE) for text in dict.fromkeys(wish.licenses) if text]
        self._new += [each for each in licenses if each.layer.digest not in have]
        if params := self._params | dict(wish.parameters):
            self._new.append(Staged.json(params, manifest.PARAMS))
        if wish.messages:
            self._drop(manifest.MESSAGES)
            self._new.append(Staged.messages(wish.messages, manifest.MESSAGES))
        own = self._config_blob.get("lm")
        made: dict[str, Any] = {"created": datetime.now(UTC).isoformat(timespec="seconds"), "version": VERSION}
        inherited = own if isinstance(own, dict) else {}
        place = wish.path if wish.origin is None else wish.origin
        before = wish.model.own if wish.model else {"origin": inherited.get("origin"), "source": place}
        made |= {
            "parent": wish.model.name if wish.model else "",
            "origin": before.get("origin") or before.get("source", ""),
        }
        if wish.draft is not None or wish.draft_files:
            made["draft"] = wish.draft.name if wish.draft else ""
        if wish.cuts:
            made["cut"] = True
        made["source"] = ""  # a pull of this name must not take it for a model of the source of its weights
        if wish.template is not None:
            made["template"] = "own" if wish.template else ""
            self._config_blob["capabilities"] = _abilities(self._config_blob.get("capabilities"), wish.template)
        self._config_blob |= {"lm": {**inherited, **made}, **wish.marks}

    def _drop(self, media: str) -> None:
        self._layers = [layer for layer in self._layers if layer.media_type != media]
        self._new = [staged for staged in self._new if staged.layer.media_type != media]

    async def _check_fit(self, adapter: Making, weights: Making | None) -> None:
        """Raise BadRequest unless the adapter that was made is for the model."""
        assert adapter.ingest is not None
        name, file = self._wish.name.display, adapter.ingest.data
        plan = None if self._wish.model is None else (await self._library.facts(self._wish.model)).plan

        def check() -> None:
            found = plan
            if found is None:
                assert weights is not None and weights.ingest is not None
                header = read_file(weights.ingest.data)
                check_model(header)
                found = ModelPlan.of(header)
            shapes = {tensor.name: tensor.shape[::-1] for tensor in found.tensors}
            check_base(check_adapter(read_file(file)), found.architecture, shapes, name)

        try:
            await asyncio.to_thread(check)
        except QuantError as error:
            raise BadRequest(f"the adapter does not fit `{name}`: {error}", error.hint, "adapters") from None

    async def _check_draft(self, making: Making | None) -> None:
        """Raise BadRequest unless the draft, a file that was made or a model that is here, can draft for the model."""
        model, draft = self._wish.model, self._wish.draft
        if self._weights is not None:
            model = self._weights.as_model(self._wish.name)
        if making is not None:
            draft = making.as_model(self._wish.name, " (its draft)")
        assert model is not None and draft is not None
        await self._library.check_draft(draft, model)

    async def _commit(self) -> Model:
        """Write the manifest; a commit that has begun is finished. Raises as `Store.adopt`."""
        ingest = await asyncio.to_thread(self._store.begin, f"{self._title}, its manifest", new=True)
        config = Staged.json(self._config_blob, manifest.CONFIG)
        # Weights first, as clients expect it; of two equal layers one will do.
        layers = {layer.digest: layer for layer in (*self._layers, *(staged.layer for staged in self._new))}
        order = sorted(layers.values(), key=lambda layer: layer.media_type in _TEXTS)
        data = manifest.build(config.layer, order)

        def adopt() -> Model:
            try:
                return self._store.adopt(ingest, data, [*self._new, config], self._wish.name)
            finally:
                self._store.abandon(ingest)

        commit = asyncio.create_task(asyncio.to_thread(adopt))
        try:
            model = await asyncio.shield(commit)
        except asyncio.CancelledError:
            await asyncio.wait([commit])
            commit.exception()  # asked for, or asyncio logs a traceback
            raise
        return model


class Creates:
    """The models that are being made, and the uploaded files that wait for that."""

    def __init__(
        self,
        config: Config,
        library: Library,
        in_use: Callable[[], set[str]],
        retire: Callable[[], Awaitable[None]],
        *,
        check: bool = True,
    ) -> None:
        """As `Create`; `retire` is called when a model may have been replaced."""
        self._config, self._library, self._in_use, self._retire, self._check = config, library, in_use, retire, check
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def lines(self, wish: CreateWish) -> AsyncGenerator[dict[str, Any]]:
        """Make a model; as `Create.lines`."""
        create = Create(wish, self._config, self._library, self._in_use, check=self._check)
        async with aclosing(create.lines()) as lines:
            async for line in lines:
                if line["status"] == "success":
                    await self._retire()
                yield line

    def uploaded(self) -> None:
        """Remove uploaded files whose leases have ended, again and again while there are leases."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SECONDS + 1, self._collect_soon)

    def _collect_soon(self) -> None:
        self._timer = None
        task = asyncio.create_task(self._collect())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _collect(self) -> None:
        try:
            await asyncio.to_thread(self._library.store.collect, self._in_use())
        except RegistryError as error:
            log.warning("uploaded files of which nothing was made are not removed: %s", error)
        if self._library.store.leases.held():
            self.uploaded()


def _abilities(before: Any, template: str) -> list[str]:
    """The capabilities of a model with its maker's template; other ones that it had before stay."""
    had = [str(each) for each in before or ["completion"]]
    if not template:
        return had
    by_template = GoTemplate(template).capabilities
    kept = [each for each in had if each not in ("tools", "thinking", *by_template)]
    return [*kept, *by_template]


def _status(text: str, phase: str = "layer") -> dict[str, Any]:
    return {"status": text, "phase": phase}
