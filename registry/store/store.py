"""The store: blobs named by their SHA-256 and manifests that list them, in Ollama's layout; nothing is ever half there.

    store.json         the version of this layout
    store.lock         held by the one process that owns the store, with its id inside
    blobs/sha256-…     complete, hashed, never written again
    manifests/host/namespace/model/tag
    shared/sha256-…    the state of a blob that another program has too (`registry/store/sharing.py`)
    pinned/host/namespace/model      the tag that the user wants a bare name to mean (`registry/store/meaning.py`)
    chosen/host/namespace/model      the tag that the last pull without a level chose
    older/host/namespace/model/tag   the manifest that a model had before it was improved (`registry/store/older.py`)
    ingest/id/         a file on its way (`registry/store/partial.py`); belongs to the process that holds the lock

Commit: fsync of the data, rename into `blobs`, fsync of `blobs`, and the manifest last, itself written aside, synced
and renamed. So a crash leaves a model as it was or as it will be, and at worst a blob that nobody lists, which
`collect` removes. An unfinished pull survives as far as its journal vouches for it. Liveness is never judged
by a clock: what is listed by a manifest, used by a worker or being ingested stays. An older manifest alone, which
`roll_back` lists again, goes after a while. (containerd's content store has the same order of steps.)
Functions block: call them from a thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from registry import digest
from registry.errors import BadName, DiskFull, ModelNotFound, NothingOlder, StoreDamaged, StoreFailed
from registry.names import Name, Reference
from registry.store import fsops, garbage, manifest, notes, older, owner, reading, recovery
from registry.store.catalog import Model
from registry.store.fsops import plainly
from registry.store.ingest import Ingest, settle
from registry.store.ingests import Ingests
from registry.store.layers import Staged
from registry.store.leases import Leases
from registry.store.manifest import Manifest

log = logging.getLogger("lm.store")


def _nobody(action: str, model: Model) -> None:
    """Whoever wants to know sets another function."""


class Store(Ingests):
    """The models of one folder, owned by this process until `close`: found, and changed. Several threads may use it."""

    def __init__(self, root: Path, lock: int) -> None:
        """Use `Store.open`."""
        super().__init__(root)
        self._lock_file = lock
        self._held: Counter[str] = Counter()
        self.leases = Leases()
        self.observe: Callable[[str, Model], None] = _nobody
        """Called with `model.add` or `model.remove` and the model, when the list has changed; from any thread."""

    @classmethod
    def open(cls, root: Path) -> Store:
        """Take the store at `root`, made if need be, and clear away what an earlier owner left unfinished.

        Raises StoreLocked (with the owner's process id), StoreDamaged (not a store of ours, or of a newer version),
        StoreFailed (no permission), DiskFull.
        """
        with plainly(root):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            root = root.resolve()
            lock = owner.take(root)
            try:
                owner.prepare(root)
                store = cls(root, lock)
                store._recover()
            except BaseException:
                os.close(lock)
                raise
        return store

    def close(self) -> None:
        """Give the store up. Closing again does nothing."""
        with self._changing:
            if self._lock_file >= 0:
                os.close(self._lock_file)
                self._lock_file = -1

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def free_bytes(self) -> int:
        """Bytes that the store's disk has left for us."""
        with plainly(self.root):
            return shutil.disk_usage(self.root).free

    def obtainable_bytes(self) -> int:
        """Bytes that the store's disk has left for us, with what `make_room` would free. Raises as `unlisted`."""
        with self._changing, plainly(self.root):
            return self.free_bytes() + sum(garbage.kept_for_older(self).values())

    def make_room(self, size: int, in_use: Collection[str]) -> None:
        """Forget older manifests, the oldest first, until the disk has `size` bytes free or none is left.

        Raises StoreFailed.
        """
        with self._changing, plainly(self.root):
            for each in older.all_of(self):
                if shutil.disk_usage(self.root).free >= size:
                    return
                log.info("%s can go back no longer: a new file needs the room", each.model.name)
                older.drop(self, each.model.key)
                self.collect(in_use)

    def commit(
        self,
        ingest: Ingest,
        layers: Sequence[Staged],
        name: Name | Reference,
        config: dict[str, Any],
        chosen: bool = True,
    ) -> Model:
        """Make blobs of `layers` and of `config`, and list them as the model `name`, replacing what had that name.

        A reference has the name where `placed` puts it. `chosen`: the variant was chosen automatically, which is noted.
        When this returns, a power cut cannot undo it; when it raises, the ingest is paused, and what had the name still
        has it (or, if the very last step failed, the new model has). Raises DigestMismatch (another size than
        announced), DiskFull, StoreFailed.
        """
        everything = [*layers, Staged.json(config, manifest.CONFIG)]
        try:
            with plainly(self.root):
                files = [(settle(ingest, staged), staged) for staged in everything]
                with self._changing:
                    name = self.placed(name).name if isinstance(name, Reference) else name
                    data = manifest.build(files[-1][1].layer, [staged.layer for _, staged in files[:-1]])
                    model = self._publish(name, files, data, chosen)
        except BaseException:
            with contextlib.suppress(StoreFailed, StoreDamaged):
                self.pause(ingest)
            raise
        with contextlib.suppress(StoreFailed):
            self.abandon(ingest)
        return model

    def adopt(
        self,
        ingest: Ingest,
        data: bytes,
        layers: Sequence[Staged],
        name: Name,
        over: str = "",
        *,
        keep_older: bool = False,
    ) -> Model:
        """List the model of the manifest `data` as `name`, byte for byte; its blobs are `layers`, or here already.

        The ingest stays, for further models. Holds and raises as `commit`; StoreDamaged also where a blob is neither
        here nor among `layers`. With `over` it takes the place of the manifest with this digest, and has its age, by
        which bare names and lists are decided; StoreFailed where that name has another manifest by now. `keep_older`:
        `roll_back` lists that one again, if the config of the new one has its digest (`Model.older`).
        """
        wanted = manifest.parse(data, name.display)
        with plainly(self.root):
            files = [(settle(ingest, staged), staged) for staged in layers]
            with self._changing:
                name = self.existing(name)
                path = self.manifest_path(name)
                before = manifest.read(path, name.display) if over else b""
                if over and digest.of(before) != over:
                    raise StoreFailed(f"`{name.display}` was replaced in the meantime", "try again")
                self._require(wanted, {staged.layer.digest for staged in layers}, name)
                if keep_older:
                    older.keep(self, name, before)
                return self._publish(name, files, data, chosen=False, times=path.stat() if over else None)

    def roll_back(self, model: Model) -> Model:
        """List the manifest again that a model had before it was improved; the improved files go at the next `collect`.

        Raises NothingOlder where it was not improved, or its older file is gone; as `adopt`.
        """
        with self._changing, plainly(self.root):
            now = self.read(model.key)
            kept = older.find(self, now) if now else None
            if now is None or kept is None:
                was = "was improved, and the older file is gone" if model.older else "was not improved"
                raise NothingOlder(f"`{model.name}` {was}, so there is nothing to go back to", "`lm jobs` has more")
            self._require(kept.contents, (), now.key)
            times = self.manifest_path(now.key).stat()
            found = self._publish(now.key, [], kept.data, chosen=False, times=times)
            older.drop(self, now.key)
            return found

    def _require(self, wanted: Manifest, coming: Collection[str], name: Name) -> None:
        """Raise StoreDamaged unless each blob of a manifest is here, or coming."""
        for layer in wanted.blobs:
            if layer.digest not in coming and not self.holds(layer.digest, layer.size):
                raise StoreDamaged(f"`{name.display}` lists `{layer.digest[:19]}`, which did not come", "try again")

    @contextlib.contextmanager
    def hold(self, digests: Iterable[str]) -> Iterator[None]:
        """Keep blobs from `collect` while the block runs, whether a model lists them or not."""
        held = Counter(set(digests))
        with self._changing:
            self._held += held
        try:
            yield
        finally:
            with self._changing:
                self._held -= held

    def copy(self, model: Model, name: Name) -> Model:
        """Give a model a further name, replacing what had that name; its blobs are shared. Raises as `adopt`."""
        with self._changing, plainly(self.root):
            data, wanted = self.manifest(model)
            self._require(wanted, (), name)
            return self._publish(name, [], data, chosen=False)

    def attach(self, model: Model, staged: Staged) -> Model:
        """List one more small layer in the manifest of a model; it replaces a layer of the same media type.

        The model keeps its age, by which bare names and lists are decided. Raises ModelNotFound where it was removed,
        or has other weights by now; DiskFull, StoreFailed.
        """
        ingest = self.begin(f"a layer for {model.name}", new=True)
        try:
            with self._changing:
                now = self.read(model.key)
                if now is None or now.blob_digest != model.blob_digest:
                    what = "was removed" if now is None else "has other weights by now"
                    raise ModelNotFound(f"`{model.name}` {what}, so nothing is noted", "measure it again")
                before = self.manifest(now)[0]
                data = manifest.with_layers(before, [staged.layer])
                return self.adopt(ingest, data, [staged], model.key, digest.of(before))
        finally:
            with contextlib.suppress(StoreFailed):
                self.abandon(ingest)

    def blob(self, digest: str) -> Path | None:
        """The path of the blob of this digest, which then stays for an hour; None where it is not here.

        Raises StoreDamaged for a text that is no digest, StoreFailed.
        """
        with self._changing:
            if self.blob_status(digest) is None:
                return None
            self.leases.take(digest)
            return self.blob_path(digest)

    def keep(self, path: Path, digest: str) -> None:
        """Make a blob of a synced file below `ingest`; a lease keeps it. Raises DiskFull, StoreFailed."""
        with self._changing, plainly(self.root):
            self.leases.take(digest)
            fsops.seal(path)
            fsops.rename(path, self.blob_path(digest))
            fsops.fsync_dir(self.blobs)
            self.shared.forget(digest)

    def choose(self, model: Model) -> None:
        """Note that this variant was chosen automatically. A note that cannot be written costs no more than itself."""
        with self._changing:
            self._choose(model.key)

    def pin(self, model: Model) -> None:
        """Let the bare name mean this variant until `unpin`. Raises StoreFailed, DiskFull."""
        with self._changing, plainly(self.root):
            notes.write(self.root, self.pin_path(model.key), model.key)

    def unpin(self, name: Name) -> None:
        """Let the bare name mean what it would without `pin`. Raises StoreFailed."""
        with self._changing, plainly(self.root):
            notes.remove(self.pins, self.pin_path(self.existing(name.tagged(None))))

    def delete(self, model: Model) -> None:
        """Forget a model; its blobs go at the next `collect`. Raises ModelNotFound when it is gone, StoreFailed."""
        path = self.manifest_path(model.key)
        with self._changing, plainly(self.root):
            if reading.status(path) is None:
                raise ModelNotFound(f"model `{model.name}` is not here", "`lm list` shows what is")
            fsops.unlink(path)
            fsops.fsync_dir(path.parent)
            notes.prune(path.parent, self.manifests)
            # A model that comes in again under this name later is neither pinned nor chosen.
            notes.remove_tag(self.choices, self.choice_path(model.key), model.key)
            notes.remove_tag(self.pins, self.pin_path(model.key), model.key)
            older.drop(self, model.key)
        self.observe("model.remove", model)

    def collect(self, in_use: Collection[str]) -> int:
        """Remove the blobs that no manifest lists and that are not `in_use` (digests); the number of bytes freed.

        Removes nothing while a manifest or a folder of manifests is unreadable. Raises StoreFailed.
        """
        with self._changing, plainly(self.root):
            return garbage.collect(self, {*in_use, *self._held, *self.leases.held()})

    def unlisted(self, in_use: Collection[str]) -> dict[str, int]:
        """The blobs that `collect` would remove, with their bytes. Raises StoreDamaged, StoreFailed."""
        with self._changing, plainly(self.root):
            return garbage.unlisted(self, {*in_use, *self._held, *self.leases.held()})

    def _publish(
        self,
        name: Name,
        files: list[tuple[Path, Staged]],
        data: bytes,
        chosen: bool,
        times: os.stat_result | None = None,
    ) -> Model:
        """Move synced files among the blobs, then write the manifest `data`, which lists them; it may have `times`."""
        if name.tag is None:
            raise BadName(f"`{name.display}` has no tag, so it names no variant to commit", "add a tag")
        name = self.existing(name)
        shared = self.shared
        for path, staged in files:
            target, value = self.blob_path(staged.layer.digest), staged.layer.digest
            if not staged.shared:
                fsops.seal(path)
                fsops.rename(path, target)
                shared.forget(value)
            elif not ((there := self.blob_status(value)) and shared.is_as_noted(value, target, there)):
                # Its mode is its owner's. The note is first: a link without one is followed by nobody.
                shared.note(value, staged.shared)
                fsops.rename(path, target)
        if files:
            fsops.fsync_dir(self.blobs)
        path = self.manifest_path(name)
        fsops.make_folders(self.manifests, path.parent)
        fsops.replace(path, data)
        if times is not None:
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        if chosen:
            self._choose(name)
        model = self.read(name)
        if model is None:
            raise StoreDamaged(f"`{name.display}` was removed while it was committed", "pull again")
        self.observe("model.add", model)
        return model

    def _choose(self, name: Name) -> None:
        path = self.choice_path(name)
        try:
            with plainly(self.root):
                notes.write(self.root, path, name)
        except (DiskFull, StoreFailed) as error:
            log.warning("that `%s` was chosen automatically is not noted: %s", name.display, error)

    def _recover(self) -> None:
        """Remove the leftovers of a process that died: ingests without a journal, temporary files, unlisted blobs.

        Leftovers that cannot be removed stay: the models of a disk that is read-only, or broken in one place, are used.
        """
        try:
            recovery.clear_away(self, self.root, self._ingests)
            self.collect(())
        except OSError as error:
            log.warning("what earlier processes left is not cleared away: %s", error)
