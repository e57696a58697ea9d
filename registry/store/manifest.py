"""Manifests: the small JSON files that say which blobs make up a model, in the form and media types of Ollama's.

Nothing read here is trusted: sizes are capped, the schema is checked, and a digest must have the form from which a path
may be built.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec

from registry import digest
from registry.digest import Digest
from registry.errors import StoreDamaged
from registry.store import reading

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
MODEL = "application/vnd.ollama.image.model"
PARAMS = "application/vnd.ollama.image.params"
ADAPTER = "application/vnd.ollama.image.adapter"
DRAFT = "application/vnd.ollama.image.draft"
SYSTEM = "application/vnd.ollama.image.system"
TEMPLATE = "application/vnd.ollama.image.template"
LICENSE = "application/vnd.ollama.image.license"
MESSAGES = "application/vnd.ollama.image.messages"
# A quality card of ours, a JSON object; programs that do not know it pass it over.
QUALITY = "application/vnd.lm.quality.v1+json"
# A signature by OpenSSF model signing, which is a Sigstore bundle; other programs pass the layer over.
SIGNATURE = "application/vnd.dev.sigstore.bundle.v0.3+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"

# A registry must expect manifests of 4 MB (OCI distribution specification); a config blob of ours is some kilobytes.
LONGEST = 4 << 20
LONGEST_CONFIG = 1 << 20
_LAYERS = 1024


class Layer(msgspec.Struct, frozen=True, rename="camel"):
    """One blob of a model: its media type, its digest (`sha256:…`), its length in bytes."""

    media_type: str
    digest: str
    size: int


class _Message(msgspec.Struct):
    """A turn with which the chats of a model begin."""

    role: str
    content: str = ""


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """A model: its config blob and its layers."""

    schema_version: int
    media_type: str
    config: Layer
    layers: tuple[Layer, ...]

    @property
    def blobs(self) -> tuple[Layer, ...]:
        """The config and all layers: the blobs of a complete model."""
        return (self.config, *self.layers)

    @property
    def digests(self) -> set[Digest]:
        """The digests of all its blobs."""
        return {digest.sha256(layer.digest) for layer in self.blobs}

    @property
    def size(self) -> int:
        """Bytes of all blobs, as listed."""
        return sum(layer.size for layer in self.blobs)

    def layer(self, media_type: str) -> Layer | None:
        """The first layer of this type."""
        return next((layer for layer in self.layers if layer.media_type == media_type), None)


def build(config: Layer, layers: list[Layer]) -> bytes:
    """The bytes of a manifest; the same layers give the same bytes."""
    return msgspec.json.encode(Manifest(2, MANIFEST, config, tuple(layers)))


def with_layers(data: bytes, layers: Sequence[Layer], without: Collection[str] = ()) -> bytes:
    """A manifest's bytes with some layers more; all else stays as it is.

    Each takes the place of the first layer of its media type, or of the config. Further layers of these types go, and
    layers of the types in `without`.
    """
    document = msgspec.json.decode(data)
    new = {layer.media_type: msgspec.to_builtins(layer) for layer in layers}
    config = new.pop(CONFIG, document["config"])
    kept = []
    for each in document["layers"]:
        kind = each["mediaType"]
        if kind not in without and kind not in {layer.media_type for layer in layers}:
            kept.append(each)
        elif kind in new:
            kept.append(new.pop(kind))
    return msgspec.json.encode(document | {"config": config, "layers": [*kept, *new.values()]})


def parse(data: bytes, name: str) -> Manifest:
    """A manifest from its bytes; `name` is for the message. Raises StoreDamaged."""
    if len(data) > LONGEST:
        raise damaged(name, f"its manifest has {len(data):,} bytes, more than {LONGEST:,}")
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise damaged(name, f"its manifest is not readable ({error})") from None
    if manifest.schema_version != 2 or manifest.media_type not in (MANIFEST, OCI_MANIFEST):
        raise damaged(name, "its manifest is of an unknown kind")
    if len(manifest.layers) > _LAYERS or any(layer.size < 0 for layer in manifest.blobs):
        raise damaged(name, "its manifest lists impossible layers")
    try:
        _ = manifest.digests
    except StoreDamaged as error:
        raise damaged(name, str(error)) from None
    return manifest


def read(path: Path, name: str) -> bytes:
    """The bytes of a manifest's file. Raises StoreDamaged, StoreFailed."""
    return _read(path, LONGEST, name)


def read_object(path: Path, name: str) -> dict[str, Any]:
    """The JSON object in a small blob (config, parameters). Raises StoreDamaged, StoreFailed."""
    try:
        found = msgspec.json.decode(_read(path, LONGEST_CONFIG, name), type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise damaged(name, f"its blob `{path.name[:19]}` is not readable ({error})") from None
    return found


def read_messages(path: Path, name: str) -> tuple[dict[str, str], ...]:
    """The messages in a small blob: objects with `role` and `content`. Raises StoreDamaged, StoreFailed."""
    try:
        found = msgspec.json.decode(_read(path, LONGEST_CONFIG, name), type=list[_Message])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise damaged(name, f"its blob `{path.name[:19]}` is not readable ({error})") from None
    return tuple({"role": each.role, "content": each.content} for each in found)


def read_text(path: Path, name: str) -> str:
    """The text in a small blob (instructions, licence). Raises StoreDamaged, StoreFailed."""
    return _read(path, LONGEST_CONFIG, name).decode("utf-8", "replace")


def encode(fields: dict[str, Any]) -> bytes:
    """A config or parameters blob, the same bytes for the same content."""
    return msgspec.json.encode(fields, order="sorted")


def _read(path: Path, longest: int, name: str) -> bytes:
    data = reading.contents(path, longest + 1)
    if not data:
        why = "is missing" if data is None else "is empty, or no regular file"
        raise damaged(name, f"`{path.name[:19]}` {why}")
    if len(data) > longest:
        raise damaged(name, f"`{path.name[:19]}` is longer than {longest:,} bytes")
    return data


def damaged(name: str, why: str) -> StoreDamaged:
    """The error of a model that contradicts its manifest."""
    return StoreDamaged(f"`{name}` is broken: {why}", f"`lm rm {name}` removes it, `lm pull` brings it in again")
