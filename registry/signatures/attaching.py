"""A signature put on a model of the store: a layer of its manifest, which goes wherever the model goes."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from registry import digest
from registry.errors import BadSignature, RegistryError
from registry.signatures.files import MOST_SIGNATURES, signature_layers, signed_files
from registry.signatures.statement import LONGEST_SIGNATURE, Signed, read_signature
from registry.store import manifest
from registry.store.catalog import Catalog
from registry.store.layers import Staged
from registry.store.manifest import Layer, Manifest
from registry.store.model import Model
from registry.store.store import Store


@dataclass(frozen=True)
class FoundSignature:
    """A signature of a model: its bytes, and what it says; `fault` is the reason for which it cannot count.

    Its files were compared with the files of the model. Whether a key made it is another question.
    """

    data: bytes
    signed: Signed | None
    fault: BadSignature | None

    @property
    def sentence(self) -> str:
        """Who signed, or what is wrong."""
        return str(self.fault) if self.fault or not self.signed else f"by {self.signed.signer}"


Vet = Callable[[str, Sequence[FoundSignature]], None]


def judged(data: bytes, files: dict[str, str]) -> FoundSignature:
    """A signature, and whether it is for these files."""
    signed = None
    try:
        signed = read_signature(data)
        signed.check_files(files)
    except BadSignature as fault:
        return FoundSignature(data, signed, fault)
    return FoundSignature(data, signed, None)


def vetted_by_nobody(title: str, signatures: Sequence[FoundSignature]) -> None:
    """A `Vet` that wants no signature."""


def found_signatures(contents: Manifest, read: Callable[[Layer], bytes]) -> list[FoundSignature]:
    """The signatures that a manifest lists; `read` gives the bytes of one, which are at most `LONGEST_SIGNATURE`."""
    files = signed_files(contents.layers)
    return [_of_layer(layer, files, read) for layer in signature_layers(contents.layers)]


def signatures_of(catalog: Catalog, model: Model) -> list[FoundSignature]:
    """The signatures of a model. Raises StoreDamaged, StoreFailed."""
    return found_signatures(catalog.contents(model), lambda layer: _blob(catalog, layer, model.name))


def fitting(signatures: Sequence[bytes], layers: Sequence[Layer]) -> list[Staged]:
    """The signatures that are for a model of these layers, as layers to commit."""
    files = signed_files(layers)
    return [staged(data) for data in signatures if judged(data, files).fault is None]


def foreseen(data: bytes, weights: str) -> FoundSignature:
    """A signature on its way in, before the files come: `weights` is the SHA-256 of the file of weights, "" where that
    is to be made, or not known."""
    try:
        files = dict(read_signature(data).files)
    except BadSignature as fault:
        return FoundSignature(data, None, fault)
    return judged(data, files | {"model.gguf": weights} if "model.gguf" in files else files)


def _of_layer(layer: Layer, files: dict[str, str], read: Callable[[Layer], bytes]) -> FoundSignature:
    if layer.size > LONGEST_SIGNATURE:
        return FoundSignature(b"", None, BadSignature(f"its signature has {layer.size:,} bytes"))
    return judged(read(layer), files)


def _blob(catalog: Catalog, layer: Layer, title: str) -> bytes:
    return manifest.read(catalog.blob_path(layer.digest), title)


def staged(data: bytes) -> Staged:
    """A signature as a layer to commit."""
    return Staged(Layer(manifest.SIGNATURE, digest.of(data), len(data)), data)


def attach(store: Store, model: Model, data: bytes) -> Model:
    """List a model with one more signature; an earlier one of the same key goes. Holds and raises as `Store.adopt`.

    Raises BadSignature for a signature that cannot be read or is for other files.
    """
    before, contents = store.manifest(model)
    signed = read_signature(data)
    signed.check_files(signed_files(contents.layers))
    layer = staged(data)
    kept = [each for each in contents.layers if not _replaced(store, each, layer.layer, signed, model.name)]
    if len(signature_layers(contents.layers)) >= MOST_SIGNATURES and len(kept) == len(contents.layers):
        raise BadSignature(f"`{model.name}` has {MOST_SIGNATURES} signatures already", "`lm cp` and sign the copy")
    after = msgspec.json.encode(msgspec.structs.replace(contents, layers=(*kept, layer.layer)))
    ingest = store.begin(f"signature {secrets.token_hex(8)}", new=True)
    try:
        return store.adopt(ingest, after, [layer], model.key, over=digest.of(before))
    finally:
        store.abandon(ingest)


def _replaced(store: Store, layer: Layer, new: Layer, signed: Signed, title: str) -> bool:
    """Whether a layer is a signature that the new one takes the place of."""
    if layer.media_type != manifest.SIGNATURE:
        return False
    if layer.digest == new.digest:
        return True
    try:
        earlier = read_signature(_blob(store, layer, title))
    except RegistryError:
        return False
    return earlier.by == "key" == signed.by and bool(earlier.key) and earlier.key == signed.key
