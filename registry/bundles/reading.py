"""Reading a bundle into the store: each blob is hashed on its way in, and a model is listed when all of it is here.

Blobs come in any order, before the index that says which are needed or after it. So each one is written into a folder
of the store under its own digest, unless the store has it; the models are listed at the end, one after the other.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from registry import digest
from registry.bundles.fetching import About, Inspect, about, is_verbatim
from registry.bundles.foreign import Describe, ForeignModel, described_plainly, laid_out
from registry.bundles.layout import BLOBS, INDEX, LAYOUT, LONGEST_INDEX, Listed, read_index, restored
from registry.bundles.tar import ByteStream, TarMember, TarReader
from registry.errors import BadBundle
from registry.names import Name
from registry.signatures.attaching import Vet, found_signatures, vetted_by_nobody
from registry.sources.layers import LARGEST, Descriptor
from registry.store import manifest
from registry.store.catalog import Model
from registry.store.fsops import plainly
from registry.store.ingest import Ingest
from registry.store.layers import Staged
from registry.store.manifest import Layer
from registry.store.store import Store

_STEP = 1 << 20
_HEX = re.compile(r"[0-9a-f]{64}")
# Other programs lay small files of their own beside a layout.
_LONGEST_OTHER = 4 << 20
Send = Callable[[dict[str, Any]], None]
Build = Callable[[Name, Path, Send], Model]


@dataclass(frozen=True)
class Arrived:
    """A blob of a bundle: its bytes, and its file; None where the store has it already."""

    size: int
    path: Path | None


@dataclass(frozen=True)
class Listable:
    """A model to list: its name, the bytes of its manifest, and small blobs that were made for it.

    With `place`, the path of a manifest with its blobs, its file is to be made.
    """

    name: Name
    data: bytes
    made: tuple[Staged, ...] = ()
    place: Path | None = None


class Import:
    """One bundle on its way into the store; `run` is for one thread.

    `inspect` is called with a file of weights, its media type, the model's name and what it says of itself; it raises
    for a file that must not be listed. `allow` is called with the name of each model, and raises for one that may not
    be brought in. `describe` gives the config and the parameters of a model in another program's form. `build` makes
    and lists the model of a manifest with its blobs beside it, whose weights are not as the store has them. `vet` gets
    the signatures of each model, and raises where they do not do.
    """

    def __init__(
        self,
        store: Store,
        stream: ByteStream,
        inspect: Inspect,
        allow: Callable[[Name], None] = lambda name: None,
        describe: Describe = described_plainly,
        build: Build | None = None,
        vet: Vet = vetted_by_nobody,
    ) -> None:
        self._store, self._tar = store, TarReader(stream)
        self._inspect, self._allow, self._describe = inspect, allow, describe
        self._build, self._vet = build, vet
        self._arrived: dict[str, Arrived] = {}
        self._index = self._layout = b""

    def run(self, send: Send) -> list[Model]:
        """Read the bundle, and list its models; `send` gets lines about it.

        A bundle that turns out to be bad lists nothing. Raises BadBundle, StoreDamaged, StoreFailed, DiskFull, and as
        `inspect` and `allow`.
        """
        ingest = self._store.begin(f"bundle {secrets.token_hex(8)}")
        with contextlib.ExitStack() as held:
            try:
                with plainly(self._store.root):
                    for member in self._tar.members():
                        self._take(member, ingest, held, send)
                    wanted = self._wanted(ingest, send)
                # Models that a pass makes may still fail, so they come first.
                made = {each.name: self._made(each.name, each.place, send) for each in wanted if each.place}
                send({"status": "writing manifests", "phase": "manifest"})
                return [made.get(each.name) or self._list(ingest, each) for each in wanted]
            finally:
                self._store.abandon(ingest)

    def _take(self, member: TarMember, ingest: Ingest, held: contextlib.ExitStack, send: Send) -> None:
        if member.name in (INDEX, LAYOUT):
            if member.size > LONGEST_INDEX or (self._index if member.name == INDEX else self._layout):
                raise BadBundle(f"the bundle has two files `{member.name}`, or one of {member.size:,} bytes")
            data = self._whole(member)
            self._index, self._layout = (data, self._layout) if member.name == INDEX else (self._index, data)
        elif member.name.startswith(BLOBS):
            self._take_blob(member, ingest, held, send)
        elif member.size > _LONGEST_OTHER:
            raise BadBundle(f"the bundle has a file `{ascii(member.name[:80])[1:-1]}`, which belongs to no layout")

    def _take_blob(self, member: TarMember, ingest: Ingest, held: contextlib.ExitStack, send: Send) -> None:
        word = member.name.removeprefix(BLOBS)
        value = f"sha256:{word}"
        if not _HEX.fullmatch(word) or member.size > LARGEST or value in self._arrived:
            raise BadBundle(f"the bundle has a blob `{ascii(word[:80])[1:-1]}` twice, or by no digest")
        held.enter_context(self._store.hold([value]))
        path = None if self._store.holds(value, member.size) else ingest.folder / word
        line = {"status": f"reading {word[:12]}", "phase": "reading", "digest": value, "total": member.size}
        found, done, buffer = hashlib.sha256(), 0, memoryview(bytearray(_STEP))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = -1 if path is None else os.open(path, flags, 0o600)
        try:
            while count := self._tar.readinto(buffer):
                found.update(buffer[:count])
                _write(target, buffer[:count])
                done += count
                send(line | {"completed": done})
        finally:
            if target >= 0:
                os.close(target)
        if found.hexdigest() != word:
            raise BadBundle(f"a blob of the bundle does not hash to its name, `{word[:12]}`", "it is damaged")
        self._arrived[value] = Arrived(member.size, path)

    def _made(self, name: Name, place: Path, send: Send) -> Model:
        assert self._build is not None
        return self._build(name, place, send)

    def _wanted(self, ingest: Ingest, send: Send) -> list[Listable]:
        """The models of the index with the bytes of their manifests, all of them complete and fit to be listed."""
        if not self._index or b"imageLayoutVersion" not in self._layout:
            raise BadBundle("the file is no bundle: it has no OCI image layout in it", "`lm export` makes one")
        found = [(each, self._manifest(each)) for each in read_index(self._index).manifests]
        wanted = []
        for each, data in found:
            self._allow(each.name)
            if not is_verbatim(data, each.name.display):
                wanted.append(self._rebuilt(ingest, each, data, send))
                continue
            contents, shown = manifest.parse(data, each.name.display), each.name.display
            files = {layer.digest: self._path(layer.digest, layer.size, shown) for layer in contents.blobs}
            said = about(contents, lambda layer, files=files: files[layer.digest], shown)  # type: ignore[misc]
            for layer in contents.blobs:
                if layer.media_type in (manifest.MODEL, manifest.ADAPTER):
                    self._inspect(files[layer.digest], layer.media_type, shown, said)
            self._vet(shown, found_signatures(contents, partial(self._small, shown)))
            wanted.append(Listable(each.name, data))
        return wanted

    def _rebuilt(self, ingest: Ingest, listed: Listed, data: bytes, send: Send) -> Listable:
        """A model in another program's form, as the store lists it. Raises BadBundle."""
        shown = listed.name.display

        def small(layer: Descriptor) -> bytes:
            return self._path(layer.digest, layer.size, shown).read_bytes()

        model = ForeignModel.of(data, shown, small)
        if model.weights is None:
            if self._build is None:
                raise BadBundle(f"`{shown}` is more than one GGUF file in the bundle", "`lm import` makes one of it")
            self._vet(shown, [])  # a file that is made here is signed by nobody
            blobs = {layer.digest: self._path(layer.digest, layer.size, shown) for layer in model.needed}
            folder = ingest.folder / f"made-{digest.of(listed.name.display.encode())[-16:]}"
            return Listable(listed.name, data, place=laid_out(folder, listed.name, data, blobs))
        path = self._path(model.weights.digest, model.weights.size, shown)
        self._inspect(path, manifest.MODEL, shown, About({}, model.beside.licenses))
        for part, size in model.beside.left_out:
            send({"status": f"`{shown}`: left out is {part} ({size:,} bytes)", "phase": "manifest"})
        built, made = model.rebuilt(*self._describe(path, model))
        bytes_of = {staged.layer.digest: staged.content for staged in made if isinstance(staged.content, bytes)}
        self._vet(shown, found_signatures(manifest.parse(built, shown), lambda layer: bytes_of[layer.digest]))
        return Listable(listed.name, built, tuple(made))

    def _small(self, title: str, layer: Layer) -> bytes:
        return manifest.read(self._path(layer.digest, layer.size, title), title)

    def _path(self, value: str, size: int, title: str) -> Path:
        """The file of a blob that a model lists. Raises BadBundle where it did not come, or is of another size."""
        arrived = self._arrived.get(value)
        if arrived is None or arrived.size != size:
            raise BadBundle(f"`{title}` lists a blob that is not in the bundle, or of another size")
        return arrived.path or self._store.blob_path(value)

    def _manifest(self, listed: Listed) -> bytes:
        arrived = self._arrived.get(listed.digest)
        if arrived is None or arrived.size != listed.size or listed.size > manifest.LONGEST:
            raise BadBundle("the index of the bundle lists a manifest that is not in it, or of another size")
        path = arrived.path or self._store.blob_path(listed.digest)
        return restored(listed, manifest.read(path, listed.name.display))

    def _list(self, ingest: Ingest, wanted: Listable) -> Model:
        layers = {staged.layer.digest: staged for staged in wanted.made}
        for layer in manifest.parse(wanted.data, wanted.name.display).blobs:
            arrived = self._arrived.get(layer.digest)
            if arrived and arrived.path is not None and arrived.path.exists():  # the model before may have taken it
                layers[layer.digest] = Staged(layer, arrived.path)
        return self._store.adopt(ingest, wanted.data, list(layers.values()), wanted.name)

    def _whole(self, member: TarMember) -> bytes:
        data = memoryview(bytearray(member.size))
        done = 0
        while done < member.size:
            done += self._tar.readinto(data[done:])
        return bytes(data)


def _write(target: int, data: memoryview) -> None:
    while target >= 0 and data:
        data = data[os.write(target, data) :]
