"""Writing a bundle: its bytes in order, and how many there will be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from registry.bundles import tar
from registry.bundles.layout import BLOBS, INDEX, LAYOUT, VERSION, Index, Listed, listed
from registry.signatures.files import SIGNATURE_FILES, named_layers, signature_layers
from registry.store.catalog import Model
from registry.store.store import Store


class BundlePiece(NamedTuple):
    """Bytes of a bundle: as they are, or as the first `size` bytes of a file."""

    content: bytes | Path
    size: int


class _Archive:
    """Files of a tar, of which most are blobs of the store."""

    _files: dict[str, BundlePiece]

    @property
    def size(self) -> int:
        """Bytes of the whole tar."""
        return sum(piece.size for piece in self.pieces())

    def pieces(self) -> Iterator[BundlePiece]:
        """All bytes, in order."""
        written = 0
        for name, body in self._files.items():
            head, tail = tar.header(name, body.size), tar.padding(body.size)
            written += len(head) + body.size + len(tail)
            yield BundlePiece(head, len(head))
            yield body
            yield BundlePiece(tail, len(tail))
        end = tar.end(written)
        yield BundlePiece(end, len(end))


class FileExport(_Archive):
    """The files of one model by their names, with its signatures beside them: what `model_signing` signs and checks.

    `digests` are the blobs that it needs of the store: hold them while it is written.
    """

    def __init__(self, store: Store, model: Model) -> None:
        """Raises StoreDamaged, StoreFailed."""
        contents = store.contents(model)
        named = named_layers(contents.layers)
        named |= dict(zip(SIGNATURE_FILES, signature_layers(contents.layers), strict=False))
        self._files = {
            name: BundlePiece(store.blob_path(layer.digest), layer.size)
            for name, layer in sorted(named.items(), key=lambda each: each[1].size)
        }
        self.digests = {layer.digest for layer in named.values()}


class Export(_Archive):
    """A bundle of models. `digests` are the blobs that it needs of the store: hold them while it is written."""

    def __init__(self, store: Store, models: Sequence[Model]) -> None:
        """Raises StoreDamaged, StoreFailed."""
        lines: list[Listed] = []
        manifests: dict[str, BundlePiece] = {}
        blobs: dict[str, BundlePiece] = {}
        for model in models:
            data, contents = store.manifest(model)
            line, shown = listed(model.key, data, contents)
            lines.append(line)
            manifests[_path(line.digest)] = BundlePiece(shown, len(shown))
            for layer in sorted(contents.blobs, key=lambda layer: layer.size):
                blobs[_path(layer.digest)] = BundlePiece(store.blob_path(layer.digest), layer.size)
        index = msgspec.json.encode(Index(2, tuple(lines)))
        self._files = (
            {LAYOUT: BundlePiece(VERSION, len(VERSION)), INDEX: BundlePiece(index, len(index))} | manifests | blobs
        )
        self.digests = {f"sha256:{name.removeprefix(BLOBS)}" for name in blobs}


def _path(digest: str) -> str:
    return BLOBS + digest.removeprefix("sha256:")
