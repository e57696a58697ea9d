"""Reading the store: which models there are, and what is wrong with them. Changes nothing but notes on shared files.

Each look takes the names from the folders and compares size and time stamps of each manifest, so damage shows at once.
Parsed manifests are kept as long as their files are the same. An unreadable folder is never taken for an empty one: it
raises StoreFailed. An unreadable manifest or blob is its model's `problem`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from registry import digest
from registry.errors import BadName, StoreDamaged, StoreFailed
from registry.names import Name
from registry.store import cards, manifest, reading
from registry.store.manifest import Layer, Manifest
from registry.store.model import LayerBlob, Model
from registry.store.sharing import Shared

__all__ = ["Catalog", "LayerBlob", "Model"]


class Stamp(NamedTuple):
    """Inode, size and times of a file, which change whenever the file does."""

    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @property
    def modified(self) -> datetime:
        """The time of the last change of its bytes."""
        return datetime.fromtimestamp(self.modified_ns / 1e9, UTC)


class Catalog:
    """The models below `root`, the store's folder; reads only. May be used by several threads."""

    def __init__(self, root: Path) -> None:
        self.blobs = root / "blobs"
        self.manifests = root / "manifests"
        self.choices = root / "chosen"
        self.pins = root / "pinned"
        self.older_manifests = root / "older"
        self.shared = Shared(root)
        self._known: dict[Path, tuple[Stamp, Model, Manifest]] = {}

    def blob_path(self, value: str) -> Path:
        """The place of the blob with this digest. Raises StoreDamaged for a text that is no digest."""
        return self.blobs / digest.sha256(value).replace(":", "-")

    def blob_status(self, value: str) -> os.stat_result | None:
        """The state of the blob with this digest, of the file that it is read from; None where there is none.

        Raises StoreDamaged for a text that is no digest, StoreFailed.
        """
        return self.shared.status(value, self.blob_path(value))

    def holds(self, value: str, size: int) -> bool:
        """Whether the blob with this digest is here whole; one that another program has too as far as it has not
        changed. Raises StoreDamaged for a text that is no digest, StoreFailed."""
        found = self.blob_status(value)
        if found is None or not stat.S_ISREG(found.st_mode) or found.st_size != size:
            return False
        return self.shared.is_as_noted(value, self.blob_path(value), found)

    def manifest_path(self, name: Name) -> Path:
        """The path of the manifest of this name; for a name without a tag, the folder with all its manifests."""
        return self.manifests.joinpath(*name.parts)

    def choice_path(self, name: Name) -> Path:
        """The file that says which variant of a model the last pull without a level chose."""
        return self.choices.joinpath(*name.tagged(None).parts)

    def pin_path(self, name: Name) -> Path:
        """The file that says which variant the user wants a bare name to mean."""
        return self.pins.joinpath(*name.tagged(None).parts)

    def older_path(self, name: Name) -> Path:
        """The file of the manifest that a model had before it was improved."""
        return self.older_manifests.joinpath(*name.parts)

    def names(self, unreadable: list[StoreFailed] | None = None) -> Iterator[Name]:
        """All names that have a manifest, broken or not, in order.

        A file whose path is no name, such as one that another program left, is passed over. A folder that cannot be
        read goes to `unreadable` where that is given. Raises StoreFailed without it, and for the folder of all.
        """
        for parts in reading.files_at_depth(self.manifests, 4, unreadable):
            with contextlib.suppress(BadName):
                yield Name(*parts)

    def models(self, unreadable: list[StoreFailed] | None = None) -> list[Model]:
        """All models in the order of their names; a broken one has a `failure`. Raises as `names`."""
        return [model for name in self.names(unreadable) if (model := self.read(name)) is not None]

    def variants(self, name: Name) -> list[Model]:
        """All models that differ from `name` in their tags only, in order. Raises StoreFailed."""
        bare = self.existing(name.tagged(None))
        found = []
        for tag in reading.entries(self.manifest_path(bare)):
            with contextlib.suppress(BadName):
                found.append(self.read(bare.tagged(tag)))
        return [model for model in found if model is not None]

    def manifest(self, model: Model) -> tuple[bytes, Manifest]:
        """The manifest of a model, as bytes and read. Raises StoreDamaged, StoreFailed."""
        data = manifest.read(self.manifest_path(model.key), model.name)
        return data, manifest.parse(data, model.name)

    def contents(self, model: Model) -> Manifest:
        """The layers of a model. Raises StoreDamaged, StoreFailed."""
        return self.manifest(model)[1]

    def read(self, name: Name) -> Model | None:
        """The model of this exact name, with its `failure` if it has one; None when there is no manifest.

        Takes no lock. Where the manifest was replaced or removed in the meantime, it is read again; while it is the
        same, its blobs stay. Raises StoreFailed where it is unknown whether there is a manifest.
        """
        path = self.manifest_path(name)
        while (stamp := _stamp(path)) is not None:
            try:
                return self._usable(name, path, stamp)
            except (StoreDamaged, StoreFailed) as failure:
                if _stamp(path) == stamp:
                    return self._broken(name, path, stamp, failure)
        return None

    def existing(self, name: Name) -> Name:
        """`name` in the store's spelling, which may differ in upper and lower case; `name` itself if it is not there.

        Raises StoreFailed.
        """
        folder, words = self.manifests, []
        for word in name.parts:
            twin = word if reading.status(folder / word) else reading.twin(folder, word)
            words.append(twin)
            folder = folder / twin
        return Name(*words)

    def _usable(self, name: Name, path: Path, stamp: Stamp) -> Model:
        """The model whose manifest is in this state. Raises StoreDamaged, StoreFailed."""
        known = self._known.get(path)
        if known is None or known[0] != stamp:
            shown = name.display
            data = manifest.read(path, shown)
            contents = manifest.parse(data, shown)
            known = (stamp, self._model(name, data, contents, stamp.modified), contents)
            self._known[path] = known
        self._check_blobs(name, known[2])
        return known[1]

    def _broken(self, name: Name, path: Path, stamp: Stamp, failure: StoreDamaged | StoreFailed) -> Model:
        """A model that cannot be used, as far as its manifest is readable."""
        known = self._known.get(path)
        if known is not None and known[0] == stamp:
            return replace(known[1], failure=failure)
        return Model(name.display, name, "", 0, stamp.modified, {}, {}, path, "", failure=failure)

    def _model(self, name: Name, data: bytes, contents: Manifest, modified: datetime) -> Model:
        shown, weights, params = name.display, contents.layer(manifest.MODEL), contents.layer(manifest.PARAMS)
        adapters = [layer for layer in contents.layers if layer.media_type == manifest.ADAPTER]
        main, turns = weights or next(iter(adapters), None), contents.layer(manifest.MESSAGES)
        draft = contents.layer(manifest.DRAFT)
        if main is None:
            raise manifest.damaged(shown, "its manifest lists no weights")
        return Model(
            name=shown,
            key=name,
            digest=hashlib.sha256(data).hexdigest(),
            size=contents.size,
            modified=modified,
            config=manifest.read_object(self.blob_path(contents.config.digest), shown),
            params=manifest.read_object(self.blob_path(params.digest), shown) if params else {},
            blob=self.blob_path(main.digest),
            blob_digest=main.digest,
            adapters=tuple(LayerBlob(self.blob_path(layer.digest), layer.digest, layer.size) for layer in adapters),
            is_adapter=weights is None,
            draft=LayerBlob(self.blob_path(draft.digest), draft.digest, draft.size) if draft else None,
            system="\n".join(self._texts(contents, manifest.SYSTEM, shown)),
            licenses=tuple(self._texts(contents, manifest.LICENSE, shown)),
            template="\n".join(self._texts(contents, manifest.TEMPLATE, shown)),
            card=self._card(contents, main, shown),
            messages=manifest.read_messages(self.blob_path(turns.digest), shown) if turns else (),
        )

    def lack(self, value: str) -> str:
        """The fault of a blob of this digest that is not here."""
        if place := self.shared.elsewhere(value, self.blob_path(value)):
            return f"its file `{place}`, which another program kept, is gone"
        return f"its blob `{value[:19]}` is missing"

    def _card(self, contents: Manifest, weights: Layer, name: str) -> dict[str, Any]:
        """The quality card in a manifest, {} where there is none, or none of these weights. Raises StoreFailed."""
        layer = contents.layer(manifest.QUALITY)
        with contextlib.suppress(StoreDamaged):
            return (
                cards.checked(manifest.read_object(self.blob_path(layer.digest), name), weights.digest) if layer else {}
            )
        return {}

    def _texts(self, contents: Manifest, kind: str, name: str) -> list[str]:
        """The texts in a manifest's layers of one type. Raises StoreDamaged, StoreFailed."""
        found = [layer.digest for layer in contents.layers if layer.media_type == kind]
        return [manifest.read_text(self.blob_path(each), name) for each in found]

    def _check_blobs(self, name: Name, contents: Manifest) -> None:
        """Compare the sizes of a manifest's blobs with what it says. Raises StoreDamaged, StoreFailed."""
        for layer in contents.blobs:
            blob = f"its blob `{layer.digest[:19]}`"
            status = self.blob_status(layer.digest)
            if status is None:
                raise manifest.damaged(name.display, self.lack(layer.digest))
            if not stat.S_ISREG(status.st_mode):
                raise manifest.damaged(name.display, f"{blob} is no regular file")
            if status.st_size != layer.size:
                raise manifest.damaged(name.display, f"{blob} has {status.st_size:,} bytes instead of {layer.size:,}")
            if not self.shared.is_as_noted(layer.digest, self.blob_path(layer.digest), status):
                raise manifest.damaged(name.display, f"{blob} is shared with another program, which changed it")


def _stamp(path: Path) -> Stamp | None:
    status = reading.status(path)
    return None if status is None else Stamp(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
