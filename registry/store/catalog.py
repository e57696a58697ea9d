"""Reading the store: which models there are, and which one a name means. Changes nothing.

Nothing here is believed because it was true before: each look takes the names from the folders and compares size and
time stamps of each manifest, so a manifest or a blob that somebody damaged or removed shows at once. What was parsed is
kept as long as the manifest's file is the same.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from registry import digest
from registry.digest import Digest
from registry.errors import BadName, ModelNotFound, StoreDamaged
from registry.names import LATEST, LIBRARY, LOCAL, OLLAMA, Name, Reference, parse
from registry.store import manifest
from registry.store.manifest import Manifest


@dataclass(frozen=True)
class Model:
    """A variant of a model in the store.

    `name` is as displayed and `key` its words; `digest` is the manifest's SHA-256 in hexadecimal, `size` the bytes of
    all its blobs, `blob` the file of its weights. `problem` says why it cannot be used, empty when it can.
    """

    name: str
    key: Name
    digest: str
    size: int
    modified: datetime
    config: dict[str, Any]
    params: dict[str, Any]
    blob: Path
    blob_digest: str
    problem: str = ""

    @property
    def own(self) -> dict[str, Any]:
        """What lm noted of it when it was brought in; empty for one that others made."""
        noted = self.config.get("lm")
        return noted if isinstance(noted, dict) else {}


class Stamp(NamedTuple):
    """What tells one state of a file from another."""

    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @property
    def modified(self) -> datetime:
        """When it was written."""
        return datetime.fromtimestamp(self.modified_ns / 1e9, UTC)


class Catalog:
    """The models below `root`, the store's folder. May be used by several threads."""

    def __init__(self, root: Path) -> None:
        self.blobs = root / "blobs"
        self.manifests = root / "manifests"
        self.choices = root / "chosen"
        self._kept: dict[Path, tuple[Stamp, Model, Manifest]] = {}

    def blob(self, value: str) -> Path:
        """Where the blob of this digest lies. Raises StoreDamaged for what is no digest."""
        return self.blobs / digest.sha256(value).replace(":", "-")

    def manifest_path(self, name: Name) -> Path:
        """Where the manifest of this name lies; a name without a tag gives the folder of its variants."""
        return self.manifests.joinpath(*name.parts)

    def choice_path(self, name: Name) -> Path:
        """The file that says which variant of a model was chosen last."""
        return self.choices.joinpath(*name.tagged(None).parts)

    def names(self) -> Iterator[Name]:
        """All names that have a manifest, broken or not, in order; files that have no name of ours are passed over."""
        for parts in _files(self.manifests, 4):
            with contextlib.suppress(BadName):
                yield Name(*parts)

    def models(self) -> list[Model]:
        """All models in the order of their names; those that cannot be used say why in `problem`."""
        return [model for name in self.names() if (model := self.read(name)) is not None]

    def read(self, name: Name) -> Model | None:
        """The model of this exact name, with its `problem` if it has one; None when there is no manifest.

        Takes no lock: what looks broken because the manifest is being replaced or removed is looked at again. While a
        manifest is the same, nobody takes its blobs away.
        """
        path = self.manifest_path(name)
        while (stamp := _stamp(path)) is not None:
            try:
                found, contents = self._parsed(name, path, stamp)
                problem = self._missing(name, contents)
            except StoreDamaged as error:
                found, problem = _broken(name, path, stamp), str(error)
            if not problem:
                return found
            if _stamp(path) == stamp:
                return replace(found, problem=problem)
        return None

    def existing(self, name: Name) -> Name:
        """The name as it is spelled in the store where it differs in upper and lower case only, else `name` itself."""
        folder, words = self.manifests, []
        for word in name.parts:
            twin = word if (folder / word).exists() else _twin(folder, word)
            words.append(twin)
            folder = folder / twin
        return Name(*words)

    def has_variants(self, name: Name) -> bool:
        """Whether any variant of a model has a manifest."""
        return bool(_entries(self.manifest_path(name.tagged(None))))

    def resolve(self, text: str, broken: bool = False) -> Model:
        """The model that `text` means. Raises BadName, ModelNotFound, and StoreDamaged unless `broken` ones will do."""
        reference = parse(text)
        for candidate in _candidates(reference):
            found = self._find(candidate, reference)
            if found is not None:
                if found.problem and not broken:
                    raise StoreDamaged(found.problem, f"`lm rm {found.name}` removes it, `lm pull` brings it in again")
                return found
        raise self._not_found(text, reference)

    def _find(self, name: Name, reference: Reference) -> Model | None:
        name = self.existing(name)
        if name.tag is None:
            tag = self._chosen(name) if reference.level is None else None
            name = name.tagged(tag)
        found = None if name.tag is None else self.read(name)
        if found is None:
            return None
        # Two folders may have the same last word; a path means the model that was made of that very folder.
        other = reference.kind == "folder" and found.config.get("lm", {}).get("source") != reference.location
        return None if other else found

    def _chosen(self, name: Name) -> str | None:
        """The variant chosen last; where that is not known or gone, the one that came in last."""
        folder = self.manifest_path(name)
        there = {variant: stamp for variant in _entries(folder) if (stamp := _stamp(folder / variant)) is not None}
        try:
            noted = self.choice_path(name).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            noted = ""
        if noted in there:
            return noted
        if name.host == OLLAMA and LATEST in there:
            return LATEST
        return max(there, key=lambda variant: there[variant].modified_ns, default=None)

    def _parsed(self, name: Name, path: Path, stamp: Stamp) -> tuple[Model, Manifest]:
        kept = self._kept.get(path)
        if kept is None or kept[0] != stamp:
            shown = name.display
            data = manifest.read(path, shown)
            contents = manifest.parse(data, shown)
            kept = (stamp, self._model(name, data, contents, stamp.modified), contents)
            self._kept[path] = kept
        return kept[1], kept[2]

    def _model(self, name: Name, data: bytes, contents: Manifest, modified: datetime) -> Model:
        shown = name.display
        weights, params = contents.layer(manifest.MODEL), contents.layer(manifest.PARAMS)
        if weights is None:
            raise StoreDamaged(f"`{shown}` is broken: its manifest lists no weights")
        return Model(
            name=shown,
            key=name,
            digest=hashlib.sha256(data).hexdigest(),
            size=contents.size,
            modified=modified,
            config=manifest.read_object(self.blob(contents.config.digest), shown),
            params=manifest.read_object(self.blob(params.digest), shown) if params else {},
            blob=self.blob(weights.digest),
            blob_digest=weights.digest,
        )

    def _missing(self, name: Name, contents: Manifest) -> str:
        """What is wrong with the blobs of a manifest, as far as their sizes tell."""
        for layer in contents.blobs:
            what = f"`{name.display}` is broken: its blob `{layer.digest[:19]}`"
            try:
                status = self.blob(layer.digest).lstat()
            except OSError:
                return f"{what} is missing"
            if not stat.S_ISREG(status.st_mode):
                return f"{what} is no regular file"
            if status.st_size != layer.size:
                return f"{what} has {status.st_size:,} bytes instead of {layer.size:,}"
        return ""

    def similar(self, reference: Reference) -> list[str]:
        """Names of models here, and `demo`, that look like this one, the most alike first."""
        bare = {"demo", *(name.tagged(None).display for name in self.names())}
        return difflib.get_close_matches(reference.name.tagged(None).display, sorted(bare), n=3, cutoff=0.7)

    def _not_found(self, text: str, reference: Reference) -> ModelNotFound:
        names = list(self.names())
        candidates = [candidate.tagged(None) for candidate in _candidates(reference)]
        variants = [name.display for name in names if any(name.tagged(None).same(other) for other in candidates)]
        single = reference.kind == "ollama"  # a single word that is not here cannot be brought in by this version
        pull = "`lm list` shows what is here" if single else f"`lm pull {reference.text}` brings it in"
        if variants and reference.kind != "folder":
            return ModelNotFound(f"there is no such variant as `{text}`", f"there is `{'`, `'.join(variants)}`; {pull}")
        close = self.similar(reference)
        hint = f"did you mean `{'` or `'.join(close)}`? {pull}" if close else pull
        return ModelNotFound(f"model `{text}` is not here", hint)


def _candidates(reference: Reference) -> list[Name]:
    """Under which names a reference may lie: a single word is something made here, else something of Ollama's."""
    name = reference.name
    if reference.kind == "ollama" and name.namespace == LIBRARY:
        tag = None if (name.tag or "").lower() == LATEST else name.tag
        return [Name(LOCAL, LIBRARY, name.model, tag), name]
    return [name]


def _broken(name: Name, path: Path, stamp: Stamp) -> Model:
    return Model(name.display, name, "", 0, stamp.modified, {}, {}, path, "")


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return Stamp(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _twin(folder: Path, word: str) -> str:
    """The entry of a folder that differs from `word` in case only, else `word`."""
    return next((entry for entry in _entries(folder) if entry.lower() == word.lower()), word)


def _entries(folder: Path) -> list[str]:
    """Names in a folder in order, without those that begin with a dot: files on their way."""
    try:
        return sorted(entry for entry in os.listdir(folder) if not entry.startswith("."))  # noqa: PTH208
    except OSError:
        return []


def _files(folder: Path, depth: int) -> Iterator[tuple[str, ...]]:
    """The paths, in parts, of all that lies exactly `depth` levels below a folder."""
    for entry in _entries(folder):
        if depth == 1:
            if not (folder / entry).is_dir():
                yield (entry,)
        else:
            yield from ((entry, *rest) for rest in _files(folder / entry, depth - 1))


def referenced(catalog: Catalog) -> set[Digest] | None:
    """All digests that some manifest lists, or None when a manifest is unreadable: then nobody knows them all."""
    marked: set[Digest] = set()
    for name in catalog.names():
        try:
            path = catalog.manifest_path(name)
            marked |= manifest.parse(manifest.read(path, name.display), name.display).digests
        except StoreDamaged:
            return None
    return marked
