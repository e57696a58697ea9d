"""The files of a bundle: an OCI image layout.

    oci-layout            {"imageLayoutVersion": "1.0.0"}
    index.json            the manifests of the models, with their names
    blobs/sha256/HEX      manifests and blobs, each once

Source: https://github.com/opencontainers/image-spec/blob/main/image-layout.md. A manifest that lm wrote has OCI's media
type in the bundle, because other programs read no other. `MANIFEST` of its descriptor is its digest in the store, and
`restored` makes the bytes of that digest.
"""

from __future__ import annotations

import re

import msgspec

from registry import digest
from registry.errors import BadBundle, BadName
from registry.names import Name, parse
from registry.store import manifest
from registry.store.manifest import Manifest

LAYOUT, INDEX, BLOBS = "oci-layout", "index.json", "blobs/sha256/"
VERSION = b'{"imageLayoutVersion":"1.0.0"}'
_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
NAME, MANIFEST = "io.lm.name", "io.lm.manifest"
_REFERENCE = "org.opencontainers.image.ref.name"
# Docker and containerd put the name here, and the tag alone into the reference.
_IMAGE = "io.containerd.image.name"
MOST_MODELS = 1024
LONGEST_INDEX = 4 << 20


class Listed(msgspec.Struct, frozen=True, rename="camel"):
    """A manifest as the index lists it."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = {}

    @property
    def name(self) -> Name:
        """The name of the model. Raises BadBundle."""
        text = next((text for key in (NAME, _IMAGE, _REFERENCE) if (text := self.annotations.get(key, ""))), "")
        try:
            parts = re.fullmatch(r"([^/]+)/([^/]+)/([^/:]+):([^/:]+)", self.annotations.get(NAME, ""))
            found = Name(*parts.groups()) if parts else parse(text).name
        except BadName:
            raise BadBundle(f"the bundle calls a model `{ascii(text[:80])[1:-1]}`, which is no name") from None
        return found if found.tag else found.tagged("latest")


class Index(msgspec.Struct, frozen=True, rename="camel"):
    """The index of a bundle."""

    schema_version: int
    manifests: tuple[Listed, ...]
    media_type: str = _INDEX_TYPE


def listed(name: Name, data: bytes, contents: Manifest) -> tuple[Listed, bytes]:
    """The line of the index for a model of the store, and the bytes of its manifest in the bundle."""
    notes = {NAME: "/".join(name.parts[:3]) + f":{name.tag}", _REFERENCE: _reference(name)}
    if manifest.build(contents.config, list(contents.layers)) == data:
        notes[MANIFEST] = digest.of(data)
        data = msgspec.json.encode(msgspec.structs.replace(contents, media_type=manifest.OCI_MANIFEST))
    media_type = manifest.OCI_MANIFEST if MANIFEST in notes else contents.media_type
    return Listed(media_type, digest.of(data), len(data), notes), data


def restored(found: Listed, data: bytes) -> bytes:
    """The bytes of a manifest as the store had them. Raises StoreDamaged for what is none."""
    if wanted := found.annotations.get(MANIFEST):
        contents = manifest.parse(data, found.name.display)
        before = manifest.build(contents.config, list(contents.layers))
        if digest.of(before) == wanted:
            return before
        raise BadBundle(f"the manifest of `{found.name.display}` is not the one that was exported")
    return data


def read_index(data: bytes) -> Index:
    """The index in these bytes. Raises BadBundle."""
    try:
        index = msgspec.json.decode(data, type=Index)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise BadBundle("the index of the bundle cannot be understood") from None
    if index.schema_version != 2 or not 0 < len(index.manifests) <= MOST_MODELS:
        raise BadBundle(f"the index of the bundle lists {len(index.manifests):,} models")
    if len({each.name for each in index.manifests}) < len(index.manifests):
        raise BadBundle("the index of the bundle lists two models of one name")
    for each in index.manifests:
        if each.media_type not in (manifest.MANIFEST, manifest.OCI_MANIFEST):
            kind = "another index" if "index" in each.media_type or "list" in each.media_type else each.media_type[:80]
            raise BadBundle(f"the index of the bundle lists {ascii(kind)[1:-1]}, and models only are read")
    return index


def _reference(name: Name) -> str:
    """The name as a reference of an OCI layout may be: letters, digits and a few marks."""
    return re.sub(r"[^A-Za-z0-9._/:@+-]+", "-", name.display)
