"""Models that other programs of this machine have: Ollama's store, Hugging Face's cache, LM Studio's folder, packages.

Only names, sizes and manifests are looked at. A folder that is not there, or cannot be read, has no models for us.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from registry.errors import BadName, RegistryError
from registry.names import parse
from registry.sources import packages
from registry.sources.layers import sort
from registry.sources.stored import layers_of

_WEIGHTS = (".gguf", ".safetensors")
_MANIFEST_BYTES = 4 << 20
# Models that are listed of one program.
_MOST = 1000
_CACHED = re.compile(r"models--([^/]+?)--([^/]+)")


@dataclass(frozen=True)
class FoundModel:
    """A model of another program: `name` for `lm pull`, `title` for people, `size` the bytes of its weights."""

    name: str
    program: str
    title: str
    size: int


def find_models(ollama: Path, hugging_face: Path, lm_studio: Path) -> list[FoundModel]:
    """All models that other programs have, in the order of programs and names."""
    found = [*_of_ollama(ollama), *_of_hugging_face(hugging_face), *_of_lm_studio(lm_studio)]
    for model in packages.installed():
        size = sum(_size(model.folder / name) for name in model.digests if name.lower().endswith(_WEIGHTS))
        found.append(FoundModel(f"package://{model.location}", "package", model.word, size))
    return found


def _of_ollama(root: Path) -> Iterator[FoundModel]:
    for path in _files(root / "manifests", 4):
        try:
            reference = parse(str(path))
            if reference.kind != "store" or _size(path) > _MANIFEST_BYTES:
                continue
            layers = sort(layers_of(path.read_bytes(), path), path.name)
        except (OSError, BadName, RegistryError):
            continue
        yield FoundModel(str(path), "ollama", reference.name.display, sum(each.size for each in layers.files.values()))


def _of_hugging_face(root: Path) -> Iterator[FoundModel]:
    for folder in _folders(root):
        name = _CACHED.fullmatch(folder.name)
        for snapshot in _folders(folder / "snapshots") if name else ():
            if name and (size := _weights(snapshot)):
                yield FoundModel(str(snapshot), "hugging face", f"{name[1]}/{name[2]}", size)


def _of_lm_studio(root: Path) -> Iterator[FoundModel]:
    for publisher in _folders(root):
        for folder in _folders(publisher):
            if size := _weights(folder):
                yield FoundModel(str(folder), "lm studio", f"{publisher.name}/{folder.name}", size)


def _weights(folder: Path) -> int:
    """Bytes of weights in a folder; 0 where it holds no model."""
    files = [path for path in _entries(folder) if path.name.lower().endswith(_WEIGHTS)]
    return sum(map(_size, files))


def _files(folder: Path, depth: int) -> Iterator[Path]:
    for path in _entries(folder):
        if depth > 1:
            yield from _files(path, depth - 1)
        elif path.is_file():
            yield path


def _folders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir()]


def _entries(folder: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))[:_MOST]  # noqa: PTH208
    except OSError:
        return []
    return [folder / name for name in names if not name.startswith(".") and name.isprintable()]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
