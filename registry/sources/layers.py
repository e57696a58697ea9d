"""The layers of a model in a registry, by their media types: which are files of the model, and which are its settings.

Ollama's own (`application/vnd.ollama.image.…`), Docker's (`application/vnd.docker.ai.…`), CNCF ModelPack's
(`application/vnd.cncf.model.…`) and KitOps' (`application/vnd.kitops.modelkit.…`). A kind that would change what the
model says, and that is not read here, is refused by name; a part that only adds to it is left out, and that is said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from registry.errors import SourceUnavailable
from registry.sources.base import Companions
from registry.store.manifest import QUALITY, SIGNATURE

_OLLAMA, _DOCKER = "application/vnd.ollama.image.", "application/vnd.docker.ai."
_MODELPACK, _KITOPS = "application/vnd.cncf.model.", "application/vnd.kitops.modelkit."
_PATH = "org.cncf.model.filepath"
_PATHS = (_PATH, "org.opencontainers.image.title")
# Which part of a model a layer is, in a ModelPack of lm's own (`registry/targets/forms.py`).
PART = "io.lm.part"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")
MOST_LAYERS = 1024
_LONGEST_SETTING = 1 << 20
LARGEST = 1 << 46  # bytes of a layer; the largest published model has less than a hundredth of it

Kind = Literal[
    "model", "file", "adapter", "draft", "archive", "projector",
    "params", "system", "template", "license", "messages", "card", "signature", "other",
]  # fmt: skip


# The endings of media types that are tars, as they are or packed, and the endings of such a tar's name.
_TARS = {
    ".tar": ".tar",
    ".tar+gzip": ".tar.gz",
    ".tar.gzip": ".tar.gz",
    ".tar+zstd": ".tar.zst",
    ".tar.zstd": ".tar.zst",
}
_SETTINGS: tuple[Kind, ...] = ("params", "system", "template", "license", "messages")


class _Turn(msgspec.Struct):
    """A turn with which the chats of a model begin."""

    role: Literal["system", "user", "assistant"]
    content: str = ""


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """A blob as a manifest lists it."""

    media_type: str = ""
    digest: str = ""
    size: int = -1
    annotations: dict[str, str] | None = None


@dataclass
class Sorted:
    """The layers of a model. `files` maps names to layers of weights and what belongs to them.

    `drafts` has at most one GGUF file, of a model that guesses the next words of this one.
    `archives` are tars of files, by names that begin with `/`, as no file's does, and end with `.gz` or `.zst` where
    they are packed. `adapters` are GGUF files that change these weights, by names. `settings` are layers by kind.
    `left_out` names the parts that are not fetched, with their bytes.
    """

    files: dict[str, Descriptor] = field(default_factory=dict)
    adapters: dict[str, Descriptor] = field(default_factory=dict)
    drafts: dict[str, Descriptor] = field(default_factory=dict)
    archives: dict[str, Descriptor] = field(default_factory=dict)
    settings: dict[Kind, list[Descriptor]] = field(default_factory=dict)
    left_out: list[tuple[str, int]] = field(default_factory=list)


def companions(found: Sorted, read: Callable[[Descriptor], bytes], title: str) -> Companions:
    """The things beside the weights, from their layers, which `read` reads and checks. Raises SourceUnavailable."""

    def texts(kind: Kind) -> list[str]:
        layers = found.settings.get(kind, [])
        if any(layer.size > _LONGEST_SETTING for layer in layers):
            raise SourceUnavailable(f"the {kind} of `{title}` is longer than {_LONGEST_SETTING:,} bytes")
        return [read(layer).decode("utf-8", "replace") for layer in layers]

    params: dict[str, Any] = {}
    try:
        for text in texts("params"):
            params |= msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        raise SourceUnavailable(f"the params of `{title}` are not readable") from None
    try:
        messages = [each for text in texts("messages") for each in msgspec.json.decode(text, type=list[_Turn])]
    except (msgspec.MsgspecError, RecursionError):
        raise SourceUnavailable(f"the messages of `{title}` are not readable") from None
    return Companions(
        card=_card(texts("card")),
        messages=tuple({"role": each.role, "content": each.content} for each in messages),
        params=params,
        system="\n".join(texts("system")),
        template="\n".join(texts("template")),
        licenses=tuple(texts("license")),
        left_out=tuple(found.left_out),
        adapters=tuple(found.adapters),
        draft=next(iter(found.drafts), ""),
        signatures=tuple(
            read(layer) for layer in found.settings.get("signature", []) if layer.size <= _LONGEST_SETTING
        ),
        as_published=True,
    )


def _card(texts: list[str]) -> dict[str, Any]:
    """The quality card, {} without one that is an object: a model is not refused for it."""
    with suppress(msgspec.MsgspecError, RecursionError):
        return msgspec.json.decode(texts[0], type=dict[str, Any]) if texts else {}
    return {}


def check(descriptor: Descriptor, title: str) -> Descriptor:
    """The descriptor, if it is one that may be fetched. Raises SourceUnavailable."""
    if not _DIGEST.fullmatch(descriptor.digest):
        shown = ascii(descriptor.digest[:80])[1:-1]
        raise SourceUnavailable(f"`{title}` lists `{shown}`, which is no digest by SHA-256", "no other kind is read")
    if not 0 <= descriptor.size <= LARGEST:
        raise SourceUnavailable(f"`{title}` lists a layer of {descriptor.size:,} bytes")
    if not _MEDIA_TYPE.fullmatch(descriptor.media_type):
        raise SourceUnavailable(f"`{title}` lists a layer of no media type")
    return descriptor


def sort(layers: Sequence[Descriptor], title: str) -> Sorted:
    """The layers by what they are. Raises SourceUnavailable for what cannot be a model, or is none that is read."""
    if len(layers) > MOST_LAYERS:
        raise SourceUnavailable(f"`{title}` lists {len(layers):,} layers, more than {MOST_LAYERS:,}")
    found, sizes = Sorted(), dict[str, int]()
    for number, layer in enumerate(layers):
        check(layer, title)
        if sizes.setdefault(layer.digest, layer.size) != layer.size:
            raise SourceUnavailable(f"`{title}` lists `{layer.digest[:19]}` with two different sizes")
        if layer not in layers[:number]:
            _place(layer, found, title)
    weights = bool(found.archives) or any(map(is_weights, found.files))
    if not weights and found.adapters:  # an adapter by itself, as `lm push` sends one
        found.files, found.adapters, weights = found.files | found.adapters, {}, True
    if not weights:
        kinds = ", ".join(sorted({layer.media_type for layer in layers})[:5]) or "no layer"
        raise SourceUnavailable(f"`{title}` holds no weights that can be read, but {kinds}", "it may be no model")
    return found


def is_weights(name: str) -> bool:
    """Whether a file of this name holds weights."""
    return name.lower().endswith((".gguf", ".safetensors"))


def _place(layer: Descriptor, found: Sorted, title: str) -> None:
    kind, suffix = _kind(layer, title)
    if kind in ("model", "file"):
        name = _name(layer, title) or _free(f"model{suffix}", found.files)
        if not name.lower().endswith(suffix):
            name += suffix
        if found.files.setdefault(name, layer).digest != layer.digest:
            raise SourceUnavailable(f"`{title}` lists two files `{name}`")
    elif kind == "archive":
        found.archives[_free(f"/archive{suffix}", found.archives)] = layer
    elif kind == "draft" and not found.drafts:
        found.drafts["draft.gguf"] = layer
    elif kind == "adapter":
        found.adapters[_free(f"adapter{suffix}", {**found.files, **found.adapters})] = layer
    elif kind in ("projector", "draft", "other"):
        shown = {"projector": "a projector", "draft": "a second draft model"}
        found.left_out.append((shown.get(kind, layer.media_type), layer.size))
    else:
        found.settings.setdefault(kind, []).append(layer)


def _kind(layer: Descriptor, title: str) -> tuple[Kind, str]:
    """The kind of a layer, and the ending of its file. Raises SourceUnavailable for what must not be left out."""
    media = layer.media_type
    if media == QUALITY:
        return "card", ""
    if media == SIGNATURE:
        return "signature", ""
    form, needed = re.search(r"\.tar(?:[+.]\w+)?$|\+\w+$", media), re.search(r"\.(weight|model|modelpart)\.", media)
    if media == f"{_DOCKER}dir.tar" or (needed and form and form[0] in _TARS):
        return "archive", _TARS[form[0]] if form else ".tar"
    if form and not media.startswith(_DOCKER):
        if needed:
            hint = "lm unpacks gzip and zstd; ask its publisher for the files as they are, or packed so"
            raise SourceUnavailable(
                f"`{title}` has its weights packed in a way that lm does not know (`{media}`)", hint
            )
        return "other", ""
    if media.startswith(_OLLAMA):
        return _ollama_kind(media.removeprefix(_OLLAMA), title)
    if media.startswith(_DOCKER):
        return _docker_kind(media.removeprefix(_DOCKER))
    if media.startswith(_MODELPACK):
        return _modelpack_kind(media.removeprefix(_MODELPACK), layer)
    if media.startswith(_KITOPS) and media.endswith(".raw"):
        return "file", ""
    return "other", ""


def _ollama_kind(kind: str, title: str) -> tuple[Kind, str]:
    kinds: dict[str, Kind] = {each: each for each in _SETTINGS}
    if kind == "model":
        return "model", ".gguf"
    if kind == "adapter":
        return "adapter", ".gguf"
    if kind in ("tensor", "json"):
        raise SourceUnavailable(
            f"`{title}` holds weights in Ollama's form for MLX, which is not read",
            "a tag without `mlx` may be a GGUF file",
        )
    kinds |= {"projector": "projector", "draft": "draft"}
    return kinds.get(kind, "other"), ""


def _docker_kind(kind: str) -> tuple[Kind, str]:
    if kind.startswith("gguf."):
        return "model", ".gguf"
    if kind == "safetensors":
        return "model", ".safetensors"
    kinds: dict[str, Kind] = {"license": "license", "mmproj": "projector", "model.file": "file"}
    return ("file", ".jinja") if kind == "chat.template.jinja" else (kinds.get(kind, "other"), "")


def _modelpack_kind(kind: str, layer: Descriptor) -> tuple[Kind, str]:
    own: dict[str, Kind] = {each: each for each in _SETTINGS}
    if (layer.annotations or {}).get(PART) in own:
        return own[(layer.annotations or {})[PART]], ""
    part, _, form = kind.partition(".v1.")
    if part == "weight":
        ending = form.removeprefix("raw")  # `.gguf` and `.safetensors` are an older extension of Docker's
        return "model", ending if ending in (".gguf", ".safetensors") else _ending(layer)
    return ("file" if part == "weight.config" else "other"), ""


def _ending(layer: Descriptor) -> str:
    """`.safetensors` where the layer's path says so, else `.gguf`."""
    return "" if _path(layer).lower().endswith((".safetensors", ".gguf")) else ".gguf"


def _path(layer: Descriptor) -> str:
    return next((path for key in _PATHS if (path := (layer.annotations or {}).get(key, ""))), "")


def _name(layer: Descriptor, title: str) -> str:
    """The path of a layer's file, as its annotations have it; "" where they have none. Raises SourceUnavailable."""
    path = _path(layer)
    parts = path.split("/")
    if path and (not path.isprintable() or "\\" in path or {"", ".", ".."} & set(parts) or len(path) > 240):
        raise SourceUnavailable(f"`{title}` calls a file `{ascii(path[:80])[1:-1]}`, which is no name of one")
    return path


def _free(name: str, taken: dict[str, Descriptor]) -> str:
    stem, dot, ending = name.rpartition(".")
    names = (name, *(f"{stem}-{number}{dot}{ending}" for number in range(2, MOST_LAYERS + 2)))
    return next(each for each in names if each not in taken)
