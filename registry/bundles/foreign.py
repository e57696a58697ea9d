"""A model of a bundle in another program's form (ModelPack, Docker's, KitOps'), made into one as the store lists it.

`registry/sources/layers.py` tells the layers apart, as for a registry. A GGUF file by itself keeps its digest, byte for
byte. Other weights go through the pass that a pull takes, from a store (`laid_out`) of the layers that came. The
manifest is a new one, so the model has another digest here than there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from registry import digest
from registry.errors import BadBundle, SourceUnavailable
from registry.names import Name
from registry.signatures.attaching import fitting
from registry.sources.base import Companions
from registry.sources.layers import Descriptor, companions, sort
from registry.store import fsops, manifest
from registry.store.layers import Staged
from registry.store.manifest import Layer

# A file of weights, the things beside it, and the model's title; gives the config and the parameters.
Describe = Callable[[Path, "ForeignModel"], tuple[dict[str, Any], dict[str, Any]]]


class _Layers(msgspec.Struct):
    layers: list[Descriptor] = []


@dataclass(frozen=True)
class ForeignModel:
    """The weights of a model, what lies `beside` them, and the digest of its manifest in the bundle.

    `weights` is None where they are no GGUF file by itself: several files, safetensors, a tar. A file is made of those.
    `needed` are its layers, as far as they are read.
    """

    title: str
    revision: str
    weights: Descriptor | None
    beside: Companions
    needed: tuple[Descriptor, ...]

    @classmethod
    def of(cls, data: bytes, title: str, read: Callable[[Descriptor], bytes]) -> ForeignModel:
        """The model of a manifest; `read` gives the bytes of a small blob. Raises BadBundle."""
        try:
            layers = msgspec.json.decode(data, type=_Layers).layers
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise BadBundle(f"the manifest of `{title}` cannot be understood") from None
        try:
            found = sort(layers, title)
            beside = companions(found, read, title)
        except SourceUnavailable as error:
            raise BadBundle(str(error), error.hint) from None
        weights = [layer for name, layer in found.files.items() if name.lower().endswith(".gguf")]
        others = any(name.lower().endswith(".safetensors") for name in found.files)
        if found.adapters or any(layer.media_type == manifest.ADAPTER for layer in weights):
            raise BadBundle(
                f"`{title}` has an adapter in the bundle, in another program's form",
                "push it to a registry, which `lm pull` reads in every form",
            )
        settings = (layer for group in found.settings.values() for layer in group)
        needed = (*found.files.values(), *found.archives.values(), *settings)
        plain = len(weights) == 1 and not (others or found.archives)
        return cls(title, str(digest.of(data)), weights[0] if plain else None, beside, needed)

    def rebuilt(self, config: dict[str, Any], params: dict[str, Any]) -> tuple[bytes, list[Staged]]:
        """The manifest as the store lists it, and the small blobs that were made for it; of a GGUF file by itself."""
        assert self.weights is not None
        texts = [(self.beside.system, manifest.SYSTEM), (self.beside.template, manifest.TEMPLATE)]
        texts += [(text, manifest.LICENSE) for text in self.beside.licenses]
        made = [Staged.text(text, media) for text, media in texts if text]
        made += [Staged.messages(self.beside.messages, manifest.MESSAGES)] if self.beside.messages else []
        made += [Staged.json(params, manifest.PARAMS)] if params else []
        described = Staged.json(config, manifest.CONFIG)
        weights = Layer(manifest.MODEL, self.weights.digest, self.weights.size)
        made += fitting(self.beside.signatures, [weights, *(staged.layer for staged in made)])
        layers = {each.digest: each for each in (weights, *(staged.layer for staged in made))}
        return manifest.build(described.layer, list(layers.values())), [*made, described]


def laid_out(folder: Path, name: Name, data: bytes, blobs: Mapping[str, Path]) -> Path:
    """A store in an empty folder, of the manifest `data` and of links that lead to the files of its blobs.

    Returns the path of the manifest, which `parse` reads as the name of a model in a store. Raises OSError.
    """
    place = folder.joinpath("manifests", *name.parts)
    fsops.mkdir(folder)
    fsops.mkdir(folder / "blobs")
    fsops.make_folders(folder, place.parent)
    fsops.write(place, data)
    for value, path in blobs.items():
        fsops.symlink(path.resolve(), folder / "blobs" / value.replace(":", "-"))
    return place


def described_plainly(path: Path, model: ForeignModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """The least that the store needs to know, and the parameters as they came."""
    return {"model_format": "gguf"}, dict(model.beside.params)
