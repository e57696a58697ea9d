"""The files of a model by names, as a signature lists them and as `lm export --format files` writes them.

A name says what a layer is for, so that a signature holds for a text as the template and not as the instructions. The
config is no file of the model: it holds each box's own notes about how the model came in. A quality card is none: it
may be measured later.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from registry.store import manifest
from registry.store.manifest import Layer

_NAMES = {
    manifest.MODEL: "model.gguf",
    manifest.ADAPTER: "adapter.gguf",
    manifest.DRAFT: "draft.gguf",
    manifest.PARAMS: "params.json",
    manifest.SYSTEM: "system.txt",
    manifest.TEMPLATE: "template.gotmpl",
    manifest.LICENSE: "LICENSE",
    manifest.MESSAGES: "messages.json",
}
MOST_SIGNATURES = 16
# The names of a model's signatures beside its files.
SIGNATURE_FILES = ["model.sig", *(f"model-{number}.sig" for number in range(2, MOST_SIGNATURES + 1))]


def named_layers(layers: Iterable[Layer]) -> dict[str, Layer]:
    """The layers of a model by the names of their files; signatures are none of them."""
    found: dict[str, Layer] = {}
    for layer in layers:
        if layer.media_type not in (manifest.SIGNATURE, manifest.QUALITY):
            found[_free(_NAMES.get(layer.media_type) or _other(layer.media_type), found)] = layer
    return found


def signed_files(layers: Iterable[Layer]) -> dict[str, str]:
    """The names of a model's files, each with its SHA-256 in hexadecimal."""
    return {name: layer.digest.removeprefix("sha256:") for name, layer in named_layers(layers).items()}


def signature_layers(layers: Iterable[Layer]) -> list[Layer]:
    """The layers that are signatures."""
    return [layer for layer in layers if layer.media_type == manifest.SIGNATURE]


def _other(media_type: str) -> str:
    """A name for a layer that lm does not know, such as a projector: its media type as a word."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", media_type) + ".bin"


def _free(name: str, taken: dict[str, Layer]) -> str:
    stem, dot, ending = name.partition(".")
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{stem}-{number}{dot}{ending}"
    return found
