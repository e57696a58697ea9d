"""Bringing this box to a list: missing models come, newer ones replace older ones, models that left it may go.

A model comes byte for byte from a neighbour or a registry that has it in Ollama's form, so that it has the same digest
on every box; anything else is pulled. The new one is there before the old one goes. Only models that an earlier sync of
the same list brought are ever removed, and only once everything on the list is here and whole.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial

from registry import digest
from registry.bundles.fetching import Fetch, is_verbatim
from registry.errors import RegistryError, SourceUnavailable
from registry.names import Name, Reference, parse
from registry.net.network import Network
from registry.net.reaching import is_loopback
from registry.sources.shelf import RegistryShelf
from registry.store import care
from registry.store.catalog import Model
from server.carrying.bundles import inspect
from server.carrying.following import Line, Send, follow
from server.carrying.lists import ListEntry, SyncRecord, fetch_list, neighbours, read_list, read_record, write_record
from server.config import Config
from server.errors import BadBody, Forbidden, ServerError
from server.library import Library
from server.loaded.pool import Pool
from server.logins import read_logins
from server.pulls.job import PullOptions
from server.pulls.jobs import Jobs
from server.pulls.lines import note_line

_turn = asyncio.Lock()
# States of a model on the list that is not here as it should be.
_LACKING = ("failed", "missing", "superseded")


@dataclass(frozen=True)
class SyncWish:
    """A sync: the list as a text with the place that it comes from, or `source` alone, a registry's name or `lm://…`.

    `local`: whoever wrote the list may have this machine's own registries asked.
    """

    source: str
    text: str | None = None
    near: tuple[str, ...] = ()
    prune: bool = False
    force: bool = False
    dry_run: bool = False
    local: bool = False


@dataclass
class Row:
    """One model of the report. `state`: here, missing, superseded, fetched, pulled or failed."""

    entry: ListEntry
    state: str
    error: str = ""
    digest: str = ""

    @property
    def shown(self) -> dict[str, str]:
        """The row as JSON has it."""
        row = {"name": self.entry.name.display, "state": self.state, "digest": self.digest, "error": self.error}
        return {key: value for key, value in row.items() if value}


@dataclass
class Sync:
    """One sync."""

    config: Config
    library: Library
    pool: Pool
    jobs: Jobs
    wish: SyncWish
    _ending: threading.Event = field(default_factory=threading.Event)

    async def run(self) -> AsyncGenerator[Line]:
        """The lines of the sync; the last one is the report. Raises BadBody, errors of `registry`."""
        async with _turn:
            network = await asyncio.to_thread(self._network)
            entries, near = await asyncio.to_thread(self._entries, network)
            self._check(entries)
            rows = [Row(entry, *await asyncio.to_thread(self._state, entry, network)) for entry in entries]
            record = await asyncio.to_thread(read_record, self.library.store.root, self.wish.source)
            for row in rows if not self.wish.dry_run else ():
                if row.state in ("missing", "superseded"):
                    async with aclosing(self._bring(row, near, network, record)) as lines:
                        async for line in lines:
                            yield line
            removed, kept = await self._prune(rows, record) if self.wish.prune else ([], [])
            await self.library.collect(self.pool.open_blobs())
            await self.pool.retire()
            yield {
                "status": "success",
                "phase": "done",
                "source": self.wish.source,
                "models": [row.shown for row in rows],
                "removed": removed,
                "kept": kept,
                "dry_run": self.wish.dry_run,
                "complete": not any(row.state in _LACKING for row in rows),
            }

    def _check(self, entries: list[ListEntry]) -> None:
        """Raise Forbidden for a list of somebody elsewhere that names this machine."""
        for entry in entries if not self.wish.local else ():
            if is_loopback(entry.reference.host):
                raise Forbidden(
                    f"the list names `{entry.name.display}`, which is on the daemon's own machine", "sync it there"
                )

    def _network(self) -> Network:
        return Network().with_hub(replace(self.config.hub, logins=read_logins(self.config)))

    def _entries(self, network: Network) -> tuple[list[ListEntry], list[str]]:
        """The entries of the list, and the neighbours that are asked first."""
        near, source = neighbours(self.wish.near), self.wish.source
        if self.wish.text is not None:
            return read_list(self.wish.text), near
        if source.startswith("lm://"):
            (host,) = neighbours([source])
            return _offered(host, network), [host, *near]
        reference = parse(source)
        if not reference.registry:
            raise BadBody(f"`{source[:80]}` is no file, and no registry's name", "name a file, or HOST/NS/LIST:TAG")
        return fetch_list(reference, network), near

    def _state(self, entry: ListEntry, network: Network) -> tuple[str, str, str]:
        """The state of an entry before anything is done, no error, and the digest of the model that is here."""
        here = [model for model in self.library.store.meant(entry.reference.text) if not model.problem]
        if not here:
            return "missing", "", ""
        model = here[0]
        known = {f"sha256:{each}" for each in model.digests} | {str(model.own.get("revision", ""))}
        if entry.pin:
            return ("here" if entry.pin in known else "superseded"), "", model.digest
        if entry.reference.kind == "oci" and (latest := _latest(entry.reference, network)):
            return ("here" if latest in known else "superseded"), "", model.digest
        return "here", "", model.digest

    async def _bring(self, row: Row, near: Sequence[str], network: Network, record: SyncRecord) -> AsyncGenerator[Line]:
        """Bring one model in; what fails is in its row."""
        entry = row.entry
        yield note_line(f"{entry.name.display} is {row.state}")
        try:
            found: list[Model] = []
            fetching = follow(lambda send: self._fetch(entry, near, network, send, found), self._end)
            async with aclosing(fetching) as lines:
                async for line in lines:
                    yield line
            if found:
                row.state, row.digest = "fetched", found[0].digest
            else:
                async for line in self._pull(entry):
                    yield line
                row.state = "pulled"
            await asyncio.to_thread(self._note, entry, found, record)
        except (RegistryError, ServerError) as error:
            row.state, row.error = "failed", str(error)
            yield note_line(f"{entry.name.display}: {error}")

    def _fetch(self, entry: ListEntry, near: Sequence[str], network: Network, send: Send, found: list[Model]) -> None:
        """Fetch a model byte for byte, from the first place that has it; `found` gets it."""
        if entry.reference.kind == "oci":
            self.library.rules.check_source(entry.reference.origin)
        places = [(host, "/".join(entry.name.parts[:3])) for host in near]
        if entry.reference.kind == "oci":
            places.append((entry.name.host, f"{entry.name.namespace}/{entry.name.model}"))
        problem: RegistryError | None = None
        for host, path in places:
            shelf = RegistryShelf(host, path, network)
            try:
                if not entry.pin and not shelf.trusted:
                    raise SourceUnavailable(f"`{host}` is asked without TLS, so only for names pinned by digest")
                data = shelf.manifest(entry.pin or str(entry.name.tag))
                if is_verbatim(data, entry.name.display):
                    name = entry.name if entry.name.tag else entry.name.tagged("latest")
                    rules = self.library.rules
                    fetch = Fetch(self.library.store, shelf, data, name, partial(inspect, rules), rules.check_signature)
                    found.append(fetch.run(send, self._ending.is_set))
                    return
            except RegistryError as error:
                problem = error
            finally:
                shelf.close()
        if problem is not None and (entry.reference.kind == "oci" or not _may_be_pulled(entry)):
            raise problem

    async def _pull(self, entry: ListEntry) -> AsyncGenerator[Line]:
        """Pull a model. Raises ServerError with the pull's own words."""
        reference = entry.reference
        if entry.pin and reference.registry:
            reference = replace(reference, name=reference.name.tagged(entry.pin.replace(":", "-", 1)))
        if not _may_be_pulled(entry):
            raise ServerError(f"nobody who was asked has `{entry.name.display}` as it is pinned", "see `--from`")
        async with aclosing(self.jobs.follow(reference, PullOptions(self.config.hub))) as lines:
            async for line in lines:
                if "error" in line:
                    raise ServerError(line["error"], line.get("hint", ""))
                if line.get("phase") != "done":
                    yield line

    def _note(self, entry: ListEntry, found: list[Model], record: SyncRecord) -> None:
        models = found or self.library.store.meant(entry.reference.text)
        known = record.keys | {model.key for model in models}
        record.names = sorted([list(name.parts) for name in known])
        write_record(self.library.store.root, record)

    async def _prune(self, rows: list[Row], record: SyncRecord) -> tuple[list[str], list[dict[str, str]]]:
        """Remove what earlier syncs of this list brought and is no longer on it.

        Returns the names of removed models, and kept models with reasons. Raises BadBody for a list
        that would remove more than half, unless it is forced.
        """
        store = self.library.store
        listed = {model.key for row in rows for model in await self.library.meant(row.entry.reference.text)}
        gone = {model.key: model for model in await self.library.models() if model.key in record.keys - listed}
        if not gone:
            return [], []
        if not self.wish.force and (not rows or 2 * len(gone) > len(record.keys)):
            raise BadBody(
                f"the list would remove {len(gone)} of the {len(record.keys)} models that it brought",
                "if that is meant: `--force`; `--dry-run --force` shows them",
            )
        if why := await self._obstacle(rows, listed):
            return [], [{"name": model.name, "reason": why} for model in gone.values()]
        removed, kept = [], []
        for model in gone.values():
            if why := await self._need(model):
                kept.append({"name": model.name, "reason": why})
                continue
            removed.append(model.name)
            if not self.wish.dry_run:
                await asyncio.to_thread(store.delete, model)
                record.names = [parts for parts in record.names if Name(*parts) != model.key]
                await asyncio.to_thread(write_record, store.root, record)
        return removed, kept

    async def _obstacle(self, rows: list[Row], listed: set[Name]) -> str:
        """Why nothing is removed: something on the list is not here, or hurt; "" where nothing stands against it."""
        left = [row for row in rows if row.state in _LACKING]
        if left and not self.wish.dry_run:
            return f"`{left[0].entry.name.display}` of the list is not here"
        models = [model for model in await self.library.models() if model.key in listed]
        store = self.library.store
        checked = await asyncio.to_thread(care.check, store, models, lambda *_: None, self._ending.is_set)
        return f"`{checked.hurt[0]}` of the list is hurt: `lm verify`" if checked.hurt else ""

    async def _need(self, model: Model) -> str:
        """Why a model stays although it left the list, "" where nothing needs it."""
        if model.key in {each.key for each in self.pool.models()}:
            return "it is loaded"
        if model.name in {row["name"] for row in await self.jobs.partials()}:
            return "it is being pulled"
        return "it is pinned" if await asyncio.to_thread(self.library.store.is_pinned, model) else ""

    def _end(self) -> None:
        self._ending.set()


def _offered(host: str, network: Network) -> list[ListEntry]:
    """The models that a neighbour offers. Raises SourceUnavailable where somebody on the way could change the list."""
    shelf = RegistryShelf(host, "", network)
    try:
        if not shelf.trusted:
            raise SourceUnavailable(
                f"`{host}` is asked without TLS, so only for names pinned by digest",
                f"sync a list of pinned names with `--from lm://{host}`, or give it a certificate",
            )
        found = []
        for path, tag in shelf.listed():
            parts = path.split("/")
            if len(parts) == 3:
                name = Name(parts[0], parts[1], parts[2], tag)
                found.append(ListEntry(Reference("store", f"/manifests/{path}/{tag}", None, name)))
        return found
    finally:
        shelf.close()


def _latest(reference: Reference, network: Network) -> str:
    """The digest that a tag has at its registry now, "" where nobody knows."""
    name = reference.name
    shelf = RegistryShelf(name.host, f"{name.namespace}/{name.model}", network)
    try:
        return str(digest.of(shelf.manifest(str(name.tag))))
    except RegistryError:
        return ""
    finally:
        shelf.close()


def _may_be_pulled(entry: ListEntry) -> bool:
    """Whether a pull gives what the list means: a pin is the digest of a registry's manifest, which no hub knows."""
    return entry.reference.kind != "store" and (not entry.pin or entry.reference.registry)
