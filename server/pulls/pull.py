"""The daemon's side of one pull: a folder in the store, a puller process that fills it, the commit.

The puller (`server/pulls/puller.py`) only writes into its folder. Everything that changes the store's list of models
happens here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from quant.errors import BadValues
from registry.errors import RegistryError
from registry.names import Name, Reference
from registry.signatures.attaching import judged, staged
from registry.signatures.files import signed_files
from registry.store import cards, manifest
from registry.store.catalog import Model
from registry.store.ingest import Ingest
from registry.store.layers import Staged
from registry.store.store import Store
from runtime.machine.rule import DISK_MARGIN
from runtime.messages import CacheConfig
from server.children.child_log import log_file
from server.children.daemon_side import task_process
from server.config import Config
from server.errors import CheckFailed, Conflict
from server.logins import read_logins
from server.policy.rules import ANYTHING, PolicyRefused, PolicyRules
from server.pulls.checking import check_file
from server.pulls.frames import Done, Effort, FromPuller, ModelRequest, Planned, PullTask, adapter_path, draft_path
from server.pulls.job import Job
from server.pulls.lines import frame_line, name_at_level, note_line, phase_line

NICE = 10
# After an error with one of these codes the partial file is of no use to another pull.
_HOPELESS = frozenset({BadValues.code, CheckFailed.code, PolicyRefused.code})


class Made(NamedTuple):
    """A model that is not in the store's list yet: the ingest with its files, the puller's last word, its layers."""

    ingest: Ingest
    done: Done
    layers: list[Staged]


class Pull:
    """One pull: from an empty folder, or from what an earlier pull left in it, to a model in the store."""

    def __init__(
        self,
        job: Job,
        config: Config,
        store: Store,
        in_use: Callable[[], set[str]],
        *,
        check: bool = True,
        rules: PolicyRules = ANYTHING,
        beside: str = "",
    ) -> None:
        """`in_use` gives the digests of blobs that must stay although no model may list them any more.

        With `check`, llama.cpp tries the finished file before it is committed. The model has to keep the `rules`.
        `beside` is the title of a file that is no pull's, but to take the place of a model's own; "" for a pull.
        """
        self._job = job
        self._config = config
        self._store = store
        self._in_use = in_use
        self._check_wanted = check
        self._rules = rules
        self._beside = beside

    async def run(self) -> Model:
        """Bring the model in. Raises as `make` and `Store.commit`; cancelled, it leaves as much as `make`."""
        made = await self.make()
        if isinstance(made, Model):
            return made
        self._job.add(phase_line("committing"))
        commit = asyncio.create_task(self._commit(made))
        try:
            return await asyncio.shield(commit)
        except asyncio.CancelledError:
            await asyncio.wait([commit])  # a commit that has begun is finished
            commit.exception()  # asked for, or asyncio logs a traceback
            raise

    async def make(self) -> Made | Model:
        """Make the model's file, and try it; the model itself where the same one is here already.

        Raises as `TaskProcess.receive` and `check_file`. Cancelled, it leaves a partial file for the next pull, or
        nothing if the job is to be removed.
        """
        job, store = self._job, self._store
        job.add(phase_line("resolving"))
        self._rules.check_source(job.reference.origin)
        ingest = await self._begin()
        try:
            if not self._beside:
                await asyncio.to_thread(self._note_owners, ingest)
            if job.detached:
                await asyncio.to_thread(store.detach, job.reference.text, job.options.note())
            result = await self._write(ingest)
            if isinstance(result, Model):
                await asyncio.shield(asyncio.to_thread(store.abandon, ingest))
                return result
            if self._check_wanted and not result.adapter:
                job.add(phase_line("checking"))
                await self._check(ingest, result)
            return Made(ingest, result, self._layers(ingest, result))
        except BaseException as error:
            hopeless = job.state == "removing" or getattr(error, "code", "") in _HOPELESS
            await asyncio.shield(asyncio.to_thread(store.abandon if hopeless else store.pause, ingest))
            raise

    def _layers(self, ingest: Ingest, done: Done) -> list[Staged]:
        """The layers of the model, with the signatures that hold for them. Raises PolicyRefused."""
        kind = manifest.ADAPTER if done.adapter else manifest.MODEL
        layers = [Staged.file(ingest.data, kind, done.sha256, done.size, done.shared)]
        layers += [
            Staged.file(adapter_path(ingest.folder, number), manifest.ADAPTER, each.sha256, each.size)
            for number, each in enumerate(done.adapters)
        ]
        if done.draft:
            file = draft_path(ingest.folder)
            layers.append(Staged.file(file, manifest.DRAFT, done.draft.sha256, done.draft.size))
        layers += [Staged.json(done.params, manifest.PARAMS)] if done.params else []
        texts = [(done.system, manifest.SYSTEM), (done.template, manifest.TEMPLATE)]
        texts += [(text, manifest.LICENSE) for text in dict.fromkeys(done.licenses)]
        layers += [Staged.text(text, media_type) for text, media_type in texts if text]
        layers += [Staged.messages(done.messages, manifest.MESSAGES)] if done.messages else []
        if card := cards.checked(done.card, layers[0].layer.digest):
            layers.append(Staged.json(card, manifest.QUALITY))
        files = signed_files(each.layer for each in layers)
        found = [judged(data, files) for data in done.signatures]
        self._rules.check_signature(self._job.reference.text, found)
        for each in found:
            if each.fault:
                self._job.add(note_line(f"a signature is not kept: {each.fault}"))
        return layers + [staged(each.data) for each in found if each.fault is None]

    async def _commit(self, made: Made) -> Model:
        ingest, done, layers = made
        reference = self._job.reference
        reference = replace(reference, name=reference.name.tagged(done.tag))
        model = await asyncio.to_thread(self._store.commit, ingest, layers, reference, done.config, reference.automatic)
        if done.adapter and (lack := await asyncio.to_thread(_lack, self._store, model)):
            self._job.add(note_line(lack))
        # Blobs of the model that had this name before. A commit takes long, so what is in use is asked only now.
        await asyncio.to_thread(self._store.collect, self._in_use())
        return model

    async def _begin(self) -> Ingest:
        store = self._store
        title = self._beside or self._job.reference.text
        beginning = asyncio.create_task(asyncio.to_thread(store.begin, title, beside=bool(self._beside)))
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            await asyncio.to_thread(store.pause, await beginning)
            raise

    def _note_owners(self, ingest: Ingest) -> None:
        """Write down the owners of the pull: the new ones, and where it goes on the earlier ones."""
        self._job.owners |= ingest.owners if ingest.journal else set()
        self._store.note_owners(self._job.reference.text, set(self._job.owners))

    async def _write(self, ingest: Ingest) -> Done | Model:
        """Let a puller write the model's file, unless the store has the same model already: then that model."""
        job = self._job
        process = task_process(
            "server.pulls.puller",
            await asyncio.to_thread(self._task, ingest),
            frames=FromPuller,
            log=log_file(self._config.logs, "puller"),
            purpose=f"pulled `{job.reference.text}`",
            nice=NICE,
        )
        async with process as puller:
            while True:
                match await puller.receive():
                    case Done() as done:
                        return done
                    case Planned() as planned:
                        check_content(planned, job.options.content, job.reference.text)
                        more = planned.output_bytes - planned.resumed + DISK_MARGIN
                        await asyncio.to_thread(self._store.make_room, more, self._in_use())
                        job.level = planned.level
                        job.add(frame_line(planned))
                        placed = await asyncio.to_thread(self._store.placed, job.reference)
                        name = name_at_level(placed, planned.level)
                        if placed.name != job.reference.name:
                            job.add(
                                note_line(
                                    f"`{job.reference.name.display}` is made of another folder: "
                                    f"this model is called `{name.display}`"
                                )
                            )
                        if same := await asyncio.to_thread(
                            _same_model, self._store, name, planned, job.options.effort, job.reference.automatic
                        ):
                            job.add(note_line(_unchanged(same, planned)))
                            return same
                        if not (planned.plain or job.options.effort):
                            await asyncio.to_thread(self._note_statistics, name)
                    case frame:
                        job.add(frame_line(frame))

    def _note_statistics(self, name: Name) -> None:
        """Say that the model which is replaced was made with statistics, and the new one is not."""
        for model in self._store.variants(name):
            if model.key.same(name) and (statistics := model.own.get("statistics")):
                self._job.add(
                    note_line(
                        f"the model that it replaces was made with {statistics}, this one is made without; "
                        f"`lm quantize {model.name} --level {model.own.get('level', 'LEVEL')}` makes it so again"
                    )
                )

    async def _check(self, ingest: Ingest, done: Done) -> None:
        """Raise CheckFailed where the finished file does not load, or computes nonsense."""
        log, job = log_file(self._config.logs, "inspector"), self._job
        await check_file(ingest.data, str(done.config["file_type"]), log, lambda text: job.add(note_line(text)))

    def _task(self, ingest: Ingest) -> PullTask:
        config, options, reference = self._config, self._job.options, self._job.reference
        journal = ingest.journal
        self._job.level = journal.facts.level if journal else ""
        partial_bytes = journal.latest.size if journal else 0
        variants = self._store.variants(self._store.placed(reference).name)
        return PullTask(
            model=ModelRequest(
                source=reference.text,
                hub=replace(options.hub, logins=read_logins(config)) if reference.registry else options.hub,
                cache_folder=str(config.cache),
                disk_free=self._store.obtainable_bytes() + partial_bytes,
                cache_config=CacheConfig.wanted(config.context, config.sequences, config.kv_type),
            ),
            folder=str(ingest.folder),
            limit_rate=options.limit_rate,
            pre=options.pre or (journal.facts.pre if journal else "") or _known_pre(variants),
            here=[str(model.own.get("made_of", "")) for model in variants if not model.problem],
            accept_unknown_keys=options.accept_unknown_keys,
            rules=self._rules,
            base=options.base,
            effort=options.effort,
            statistics=options.statistics,
            sharing="copy" if options.copy else _sharing(config, reference),
        )


def check_content(planned: Planned, wanted: str, name: str) -> None:
    """Raise Conflict where the digest of the source's weights is not `wanted`, "" for any."""
    if wanted and planned.content and wanted != planned.content:
        raise Conflict(
            f"the source of `{name}` has changed since the model was made of it",
            f"`lm pull {name}` makes the model anew",
        )


def _lack(store: Store, adapter: Model) -> str:
    """A sentence where the model that an adapter is for is not here, or not known; "" where it is here."""
    if not adapter.base:
        return "it does not say for which model it is: `--base NAME` does, or name it beside a model"
    try:
        store.resolve(adapter.base)
    except RegistryError:
        return f"it is for `{adapter.base}`, which is not here: `lm pull {adapter.base}` brings it in"
    return ""


def _sharing(config: Config, reference: Reference) -> Literal["place", "link", "reflink"]:
    """How a file may be taken over. Files of another program's store are replaced, but never written again."""
    if reference.kind == "package":
        return "link"  # its environment may go at any time
    location = Path(reference.location)
    stored = reference.kind == "folder" and any(map(location.is_relative_to, config.model_stores))
    return "place" if stored or reference.kind == "store" else "reflink"


def _known_pre(variants: list[Model]) -> str:
    """The pre-tokenizer that the user named for another variant of the model; "" for none."""
    return next(filter(None, (str(model.own.get("pre", "")) for model in variants)), "")


def _same_model(store: Store, name: Name, planned: Planned, effort: Effort, automatic: bool) -> Model | None:
    """The model of that name if a pull would make the same; where its level is `automatic`, that is noted.

    A pull that names no effort leaves a model of the same weights that was made with a greater one as it is.
    """
    keys = ("made_of",) if effort else ("made_of", "plain")
    for model in store.variants(name):
        if model.key.same(name) and not model.problem and planned.made_of in map(model.own.get, keys):
            if automatic:
                store.choose(model)
            return model
    return None


def _unchanged(model: Model, planned: Planned) -> str:
    """Why a pull leaves a model as it is."""
    if model.own.get("made_of") == planned.made_of:
        return "nothing has changed since it was brought in"
    return (
        f"nothing has changed since it was made with {model.own.get('statistics', 'statistics')}; "
        f"`lm quantize {model.name} --effort quick` makes it anew without"
    )
