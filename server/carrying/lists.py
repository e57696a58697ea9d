"""Lists of models for a box: read from a text or from a registry; and records of the models that a list brought.

A list has one name on a line, as `lm pull` takes it, with the digest of its manifest behind it if it is pinned:
`registry.lan/team/tale:v1@sha256:…`. `#` begins a comment. A registry keeps such a list as an artefact of one layer.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from registry import digest
from registry.errors import BadName, SourceUnavailable, StoreDamaged
from registry.names import Name, Reference, parse
from registry.net.network import Network
from registry.sources.shelf import RegistryShelf
from registry.store import fsops, manifest, reading
from registry.store.fsops import plainly
from registry.store.manifest import Layer
from registry.targets.forms import Outgoing
from server.errors import BadBody

LIST = "application/vnd.lm.list.v1+text"
_EMPTY = "application/vnd.oci.empty.v1+json"
_LONGEST, _MOST = 1 << 20, 1000
_PINNED = re.compile(r"(.+)@(sha256:[0-9a-f]{64})")
FOLDER = "synced"


class ListEntry(msgspec.Struct, frozen=True):
    """A model on a list: its reference, and the digest of its manifest, "" where it is not pinned."""

    reference: Reference
    pin: str = ""

    @property
    def name(self) -> Name:
        """The name under which it will lie here, as far as the list says it."""
        return self.reference.name


class SyncRecord(msgspec.Struct):
    """The models that syncs of one list brought, by their full names."""

    source: str
    names: list[list[str]] = []

    @property
    def keys(self) -> set[Name]:
        """Their names."""
        return {Name(*parts) for parts in self.names}


class _Artefact(msgspec.Struct, rename="camel"):
    layers: list[Layer] = []


def read_list(text: str) -> list[ListEntry]:
    """The entries of a list. Raises BadBody, which names the line."""
    if len(text) > _LONGEST:
        raise BadBody(f"the list has {len(text):,} letters, more than {_LONGEST:,}", "cut it in two")
    found: dict[str, ListEntry] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        match = _PINNED.fullmatch(words[0])
        try:
            reference = parse(match[1] if match else words[0])
            if len(words) > 1 or reference.on_disk:
                raise BadName("a list has one name on a line, and no folders", "")
        except BadName as error:
            raise BadBody(f"line {number} of the list: {error}", error.hint, "list") from None
        found[reference.name.display] = ListEntry(reference, match[2] if match else "")
    if len(found) > _MOST:
        raise BadBody(f"the list has {len(found):,} models, more than {_MOST:,}", "cut it in two")
    return list(found.values())


def fetch_list(reference: Reference, network: Network) -> list[ListEntry]:
    """The list that a registry keeps at `reference`. Raises as `RegistryShelf.manifest`, BadBody."""
    name = reference.name
    shelf = RegistryShelf(name.host, f"{name.namespace}/{name.model}", network)
    try:
        tag = str(name.tag)
        data = shelf.manifest(tag.replace("-", ":", 1) if tag.startswith("sha256-") else tag)
        try:
            layers = msgspec.json.decode(data, type=_Artefact).layers
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            layers = []
        layer = next((each for each in layers if each.media_type == LIST), None)
        if layer is None or layer.size > _LONGEST:
            raise SourceUnavailable(f"`{name.display}` is no list of models", "`lm sync FILE --publish` puts one there")
        shelf.expect(layer)
        return read_list(shelf.read(layer.digest, 0, layer.size).decode("utf-8", "replace"))
    finally:
        shelf.close()


def outgoing(text: str) -> Outgoing:
    """A list as the artefact that a registry keeps. Raises BadBody."""
    read_list(text)
    data = text.encode()
    config, layer = Layer(_EMPTY, digest.of(b"{}"), 2), Layer(LIST, digest.of(data), len(data))
    document = {
        "schemaVersion": 2,
        "mediaType": manifest.OCI_MANIFEST,
        "artifactType": LIST,
        "config": config,
        "layers": [layer],
    }
    made = {config.digest: b"{}", layer.digest: data}
    return Outgoing(msgspec.json.encode(document), manifest.OCI_MANIFEST, (config, layer), made)


def neighbours(texts: Sequence[str]) -> list[str]:
    """The hosts of `lm://HOST[:PORT]`. Raises BadBody."""
    for text in texts:
        if not re.fullmatch(r"lm://[A-Za-z0-9][A-Za-z0-9.-]{0,252}(:[0-9]{1,5})?/?", text):
            raise BadBody(f"`{ascii(text[:80])[1:-1]}` is no neighbour", "name one such as `lm://box:11434`", "from")
    return [text.removeprefix("lm://").rstrip("/") for text in texts]


def read_record(root: Path, source: str) -> SyncRecord:
    """The record of the list from `source`. Raises StoreFailed; StoreDamaged where it cannot be understood."""
    data = reading.contents(_path(root, source), 4 * _LONGEST)
    try:
        return msgspec.json.decode(data, type=SyncRecord) if data else SyncRecord(source)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise StoreDamaged("the record of this list cannot be read", f"see `{FOLDER}` in the store") from None


def write_record(root: Path, record: SyncRecord) -> None:
    """Keep a record. Raises StoreFailed, DiskFull."""
    path = _path(root, record.source)
    with plainly(root):
        fsops.make_folders(root, path.parent)
        fsops.replace(path, msgspec.json.encode(record))


def _path(root: Path, source: str) -> Path:
    return root / FOLDER / hashlib.sha256(source.encode()).hexdigest()[:32]
