"""The forms in which a model is pushed: as the store has it, which is Ollama's, or as a CNCF ModelPack.

Source: https://github.com/modelpack/model-spec/blob/main/docs/spec.md and docs/config.md for ModelPack, the
annotations of https://github.com/opencontainers/image-spec/blob/main/annotations.md. Annotations of our own begin with
`io.lm.`; a reader that does not know them passes them over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from registry import digest
from registry.sources.layers import PART
from registry.store import manifest
from registry.store.catalog import Model
from registry.store.manifest import Layer, Manifest

Form = Literal["ollama", "modelpack"]

_PACK = "application/vnd.cncf.model."
_PATH = "org.cncf.model.filepath"
_OCI = "org.opencontainers.image."
_SETTINGS = {
    manifest.PARAMS: ("params", "params.json", "weight.config.v1.raw"),
    manifest.SYSTEM: ("system", "system.txt", "weight.config.v1.raw"),
    manifest.TEMPLATE: ("template", "template.gotmpl", "weight.config.v1.raw"),
    manifest.LICENSE: ("license", "LICENSE", "doc.v1.raw"),
}


@dataclass(frozen=True)
class Outgoing:
    """A manifest to push, and its blobs in the order in which they go; a blob made for it is in `made`, by digest."""

    data: bytes
    media_type: str
    blobs: tuple[Layer, ...]
    made: Mapping[str, bytes]


def as_stored(data: bytes, contents: Manifest) -> Outgoing:
    """The model byte for byte as the store lists it, so that its digest stays the same."""
    return Outgoing(data, contents.media_type, tuple(dict.fromkeys(contents.blobs)), {})


def as_modelpack(model: Model, contents: Manifest, notes: Mapping[str, str]) -> Outgoing:
    """The model as a ModelPack: the same blobs by its media types, a config in its form, `notes` as annotations."""
    layers = [_layer(each, number, contents, model) for number, each in enumerate(contents.layers)]
    config = msgspec.json.encode(_config(model, contents))
    described = {"mediaType": f"{_PACK}config.v1+json", "digest": digest.of(config), "size": len(config)}
    annotations = {key: value for key, value in {**_annotations(model), **notes}.items() if value}
    document = {
        "schemaVersion": 2,
        "mediaType": manifest.OCI_MANIFEST,
        "artifactType": f"{_PACK}manifest.v1+json",
        "config": described,
        "layers": layers,
        "annotations": annotations,
    }
    blobs = dict.fromkeys([*contents.layers, Layer(str(described["mediaType"]), digest.of(config), len(config))])
    return Outgoing(msgspec.json.encode(document), manifest.OCI_MANIFEST, tuple(blobs), {digest.of(config): config})


def _layer(layer: Layer, number: int, contents: Manifest, model: Model) -> dict[str, Any]:
    found = {"digest": layer.digest, "size": layer.size}
    if layer.media_type in _SETTINGS:
        part, path, kind = _SETTINGS[layer.media_type]
        before = sum(each.media_type == layer.media_type for each in contents.layers[:number])
        path = f"{path}-{before + 1}" if before else path
        return {"mediaType": f"{_PACK}{kind}", **found, "annotations": {_PATH: path, PART: part}}
    if layer.media_type == manifest.MODEL:
        path = f"{model.key.model}-{model.key.tag}.gguf"
        return {"mediaType": f"{_PACK}weight.v1.raw", **found, "annotations": {_PATH: path}}
    return {"mediaType": layer.media_type, **found}


def _config(model: Model, contents: Manifest) -> dict[str, Any]:
    config, own = model.config, model.own
    descriptor = {
        "name": model.key.model,
        "family": config.get("model_family"),
        "version": model.key.tag,
        "createdAt": own.get("created"),
        "sourceURL": own.get("source"),
        "revision": own.get("revision"),
    }
    described = {
        "architecture": "transformer",
        "format": "gguf",
        "paramSize": config.get("model_type"),
        "precision": config.get("file_type"),
        "quantization": config.get("file_type"),
    }
    return {
        "descriptor": {key: value for key, value in descriptor.items() if value},
        "config": {key: value for key, value in described.items() if value},
        "modelfs": {"type": "layers", "diffIds": [layer.digest for layer in contents.layers]},
    }


def _annotations(model: Model) -> dict[str, str]:
    own = model.own
    first = next((line.strip() for text in model.licenses for line in text.splitlines() if line.strip()), "")
    return {
        f"{_OCI}title": model.key.tagged(None).display,
        f"{_OCI}version": str(model.key.tag),
        f"{_OCI}source": str(own.get("source") or ""),
        f"{_OCI}revision": str(own.get("revision") or ""),
        f"{_OCI}created": str(own.get("created") or ""),
        f"{_OCI}licenses": first[:200],
        "io.lm.recipe": ": ".join(filter(None, (str(own.get("level") or ""), str(own.get("reason") or "")))),
        "io.lm.version": str(own.get("version") or ""),
    }
