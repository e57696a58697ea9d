"""A model fetched byte for byte from a registry or another lm; what the store has already is not fetched.

Its weights go on from where an earlier fetch ended (`registry/store/partial.py`), whatever ended it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from registry.errors import DigestMismatch, SourceUnavailable, StoreDamaged
from registry.names import Name
from registry.signatures.attaching import Vet, found_signatures, vetted_by_nobody
from registry.sources.shelf import RegistryShelf
from registry.store import manifest
from registry.store.catalog import Model
from registry.store.ingest import Ingest
from registry.store.layers import Staged
from registry.store.manifest import Layer, Manifest
from registry.store.partial import Checkpoint, Partial, PullFacts
from registry.store.store import Store

_STEP = 1 << 20
Send = Callable[[dict[str, Any]], None]


class About(NamedTuple):
    """The words of a model that comes in about itself: its config, and the texts of its licences."""

    config: dict[str, Any]
    licenses: tuple[str, ...]


Inspect = Callable[[Path, str, str, About], None]


def about(contents: Manifest, file: Callable[[Layer], Path], title: str) -> About:
    """The config of a model and the texts of its licences; `file` gives the file of a layer.

    Raises StoreDamaged, StoreFailed.
    """
    licenses = [layer for layer in contents.layers if layer.media_type == manifest.LICENSE]
    config = manifest.read_object(file(contents.config), title)
    return About(config, tuple(manifest.read_text(file(layer), title) for layer in licenses))


def is_verbatim(data: bytes, title: str) -> bool:
    """Whether a manifest is of a model in Ollama's form, which the store keeps as it is."""
    try:
        contents = manifest.parse(data, title)
    except StoreDamaged:
        return False
    return contents.layer(manifest.MODEL) is not None or contents.layer(manifest.ADAPTER) is not None


class Fetch:
    """A model on its way from a shelf, by the bytes of its manifest; for one thread.

    `inspect` is called with its weights before it is listed, `vet` with its signatures before the weights come, as by
    `Import`.
    """

    def __init__(
        self,
        store: Store,
        shelf: RegistryShelf,
        data: bytes,
        name: Name,
        inspect: Inspect,
        vet: Vet = vetted_by_nobody,
    ) -> None:
        """Raises StoreDamaged for what is no manifest, SourceUnavailable for layers that may not be fetched."""
        self._store, self._shelf, self._data, self._name, self._inspect = store, shelf, data, name, inspect
        self._vet = vet
        self._contents: Manifest = manifest.parse(data, name.display)
        if not is_verbatim(data, name.display):
            raise SourceUnavailable(f"`{name.display}` is not in Ollama's form at `{shelf.title}`", "pull it")
        for layer in self._contents.blobs:
            shelf.expect(layer)

    def run(self, send: Send, stopped: Callable[[], bool]) -> Model:
        """Fetch what is missing, and list the model. Raises InterruptedError, errors of `registry`."""
        ingest = self._store.begin(self._name.display)
        with self._store.hold(layer.digest for layer in self._contents.blobs):
            try:
                staged = self._fetch(ingest, send, stopped)
                self._check(staged)
                model = self._store.adopt(ingest, self._data, staged, self._name)
            except BaseException:
                with contextlib.suppress(Exception):
                    self._store.pause(ingest)
                raise
            self._store.abandon(ingest)
            return model

    def _fetch(self, ingest: Ingest, send: Send, stopped: Callable[[], bool]) -> list[Staged]:
        here = self._store.holds
        missing = [each for each in dict.fromkeys(self._contents.blobs) if not here(each.digest, each.size)]
        candidates = [each for each in missing if each.media_type != manifest.SIGNATURE]
        large = max(candidates, key=lambda layer: layer.size, default=None)
        staged = [Staged(layer, self._whole(ingest, layer)) for layer in missing if layer is not large]
        self._check_signatures(staged)
        if large is not None:
            staged.append(self._stream(ingest, large, send, stopped))
        return staged

    def _whole(self, ingest: Ingest, layer: Layer) -> Path:
        """The file of a blob that is fetched in one go."""
        path = ingest.folder / layer.digest.removeprefix("sha256:")
        path.unlink(missing_ok=True)
        left, buffer = layer.size, memoryview(bytearray(_STEP))
        with contextlib.closing(self._shelf.open(layer.digest)) as reader, path.open("xb") as file:
            while left:
                part = buffer[: min(_STEP, left)]
                reader.readinto(part)
                file.write(part)
                left -= len(part)
            reader.finish()
        return path

    def _stream(self, ingest: Ingest, layer: Layer, send: Send, stopped: Callable[[], bool]) -> Staged:
        line = {"status": f"fetching {layer.digest[7:19]}", "phase": "fetching", "digest": layer.digest}
        partial = Partial(ingest.folder)
        try:
            title = self._name.display
            facts = PullFacts(title, self._shelf.title, "", "", "as it is there", layer.digest, layer.size)
            place = partial.begin(facts)
            offset, state = (place.offset, place.state) if place else (0, b"")
            with contextlib.closing(self._shelf.open(layer.digest, offset, state)) as reader:
                buffer = memoryview(bytearray(_STEP))
                while offset < layer.size:
                    if stopped():
                        raise InterruptedError("the sync was ended")
                    part = buffer[: min(_STEP, layer.size - offset)]
                    reader.readinto(part)
                    partial.write(part)
                    offset += len(part)
                    partial.reached(Checkpoint(0, 0, layer.digest, offset, reader.state() or b"", 0, b""))
                    send(line | {"total": layer.size, "completed": offset})
                try:
                    reader.finish()
                except DigestMismatch:
                    partial.rewind()
                    raise
            sha256, size = partial.finish()
        finally:
            partial.close()
        return Staged.file(ingest.data, layer.media_type, sha256, size)

    def _check_signatures(self, staged: list[Staged]) -> None:
        """Let `vet` see the signatures, before the weights come."""
        files = {each.layer.digest: each.content for each in staged}

        def read(layer: Layer) -> bytes:
            path = files.get(layer.digest, self._store.blob_path(layer.digest))
            assert isinstance(path, Path)
            return manifest.read(path, self._name.display)

        self._vet(self._name.display, found_signatures(self._contents, read))

    def _check(self, staged: list[Staged]) -> None:
        """Inspect the weights, and read the config. Raises as `inspect`, StoreDamaged."""
        files, title = {each.layer.digest: each.content for each in staged}, self._name.display

        def file(layer: Layer) -> Path:
            path = files.get(layer.digest, self._store.blob_path(layer.digest))
            assert isinstance(path, Path)
            return path

        said = about(self._contents, file, title)
        for layer in self._contents.layers:
            if layer.media_type in (manifest.MODEL, manifest.ADAPTER):
                self._inspect(file(layer), layer.media_type, title, said)
