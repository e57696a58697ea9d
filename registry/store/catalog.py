"""Reading the store: which models there are, and which one a name means. Changes nothing but notes on shared files.

Each look takes the names from the folders and compares size and time stamps of each manifest, so damage shows at once.
Parsed manifests are kept as long as their files are the same. An unreadable folder is never taken for an empty one: it
raises StoreFailed. An unreadable manifest or blob is its model's `problem`.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from registry import digest
from registry.errors import BadName, ModelNotFound, StoreDamaged, StoreFailed
from registry.names import LATEST, LIBRARY, LOCAL, Name, Reference, parse
from registry.store import manifest, reading
from registry.store.manifest import Manifest
from registry.store.meaning import LevelHere, Meaning, decide
from registry.store.model import LayerBlob, Model
from registry.store.sharing import Shared

__all__ = ["Catalog", "LayerBlob", "Model", "is_meant"]

_LONGEST_CHOICE = 256


class Stamp(NamedTuple):
    """Inode, size and times of a file, which change whenever the file does."""

    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @property
    def modified(self) -> datetime:
        """The time of the last change of its bytes."""
        return datetime.fromtimestamp(self.modified_ns / 1e9, UTC)


class Catalog:
    """The models below `root`, the store's folder; reads only. May be used by several threads."""

    def __init__(self, root: Path) -> None:
        self.blobs = root / "blobs"
        self.manifests = root / "manifests"
        self.choices = root / "chosen"
        self.pins = root / "pinned"
        self.shared = Shared(root)
        self._known: dict[Path, tuple[Stamp, Model, Manifest]] = {}

    def blob(self, value: str) -> Path:
        """The path of the blob with this digest. Raises StoreDamaged for a text that is no digest."""
        return self.blobs / digest.sha256(value).replace(":", "-")

    def manifest_path(self, name: Name) -> Path:
        """The path of the manifest of this name; for a name without a tag, the folder with all its manifests."""
        return self.manifests.joinpath(*name.parts)

    def choice_path(self, name: Name) -> Path:
        """The file that says which variant of a model the last pull without a level chose."""
        return self.choices.joinpath(*name.tagged(None).parts)

    def pin_path(self, name: Name) -> Path:
        """The file that says which variant the user wants a bare name to mean."""
        return self.pins.joinpath(*name.tagged(None).parts)

    def names(self, unreadable: list[StoreFailed] | None = None) -> Iterator[Name]:
        """All names that have a manifest, broken or not, in order.

        A file whose path is no name, such as one that another program left, is passed over. A folder that cannot be
        read goes to `unreadable` where that is given. Raises StoreFailed without it, and for the folder of all.
        """
        for parts in reading.files_at_depth(self.manifests, 4, unreadable):
            with contextlib.suppress(BadName):
                yield Name(*parts)

    def models(self, unreadable: list[StoreFailed] | None = None) -> list[Model]:
        """All models in the order of their names; a broken one has a `failure`. Raises as `names`."""
        return [model for name in self.names(unreadable) if (model := self.read(name)) is not None]

    def variants(self, name: Name) -> list[Model]:
        """All models that differ from `name` in their tags only, in order. Raises StoreFailed."""
        bare = self.existing(name.tagged(None))
        found = []
        for tag in reading.entries(self.manifest_path(bare)):
            with contextlib.suppress(BadName):
                found.append(self.read(bare.tagged(tag)))
        return [model for model in found if model is not None]

    def read(self, name: Name) -> Model | None:
        """The model of this exact name, with its `failure` if it has one; None when there is no manifest.

        Takes no lock. Where the manifest was replaced or removed in the meantime, it is read again; while it is the
        same, its blobs stay. Raises StoreFailed where it is unknown whether there is a manifest.
        """
        path = self.manifest_path(name)
        while (stamp := _stamp(path)) is not None:
            try:
                return self._usable(name, path, stamp)
            except (StoreDamaged, StoreFailed) as failure:
                if _stamp(path) == stamp:
                    return self._broken(name, path, stamp, failure)
        return None

    def existing(self, name: Name) -> Name:
        """`name` in the store's spelling, which may differ in upper and lower case; `name` itself if it is not there.

        Raises StoreFailed.
        """
        folder, words = self.manifests, []
        for word in name.parts:
            twin = word if reading.status(folder / word) else reading.twin(folder, word)
            words.append(twin)
            folder = folder / twin
        return Name(*words)

    def resolve(self, text: str, broken: bool = False) -> Model:
        """The model that `text` means; one that cannot be used only where `broken` ones will do.

        Raises BadName, ModelNotFound, StoreDamaged, StoreFailed.
        """
        reference = parse(text)
        for candidate in _candidates(reference):
            found = self._find(candidate, reference)
            if found is not None:
                if found.failure and not broken:
                    raise found.failure
                return found
        raise self._not_found(text, reference)

    def meant(self, text: str) -> list[Model]:
        """The models that `text` may mean, broken ones too: all variants for a bare name, at most one for a full name.

        Raises BadName, StoreFailed.
        """
        reference = parse(text)
        for candidate in _candidates(reference):
            if candidate.tag is not None:
                found = self.read(self.existing(candidate))
                variants = [] if found is None else [found]
            else:
                variants = self.variants(candidate) if reference.level is None else []
            if variants := [model for model in variants if _made_of(model, reference)]:
                return variants
        return []

    def meaning(self, text: str) -> Meaning | None:
        """The meaning of a bare name; None for a full name or where none is here. Raises BadName, StoreFailed."""
        reference = parse(text)
        if reference.level is None:
            for candidate in _candidates(reference):
                if candidate.tag is None and (models := [*filter(_of(reference), self.variants(candidate))]):
                    return self._meaning(models)
        return None

    def placed(self, reference: Reference) -> Reference:
        """The reference with the name under which its model belongs: two folders of one name get different ones.

        Raises StoreFailed where it is unknown of which folder a model was made.
        """
        for name in reference.names:
            variants = self.variants(name.tagged(None))
            for failure in (each.failure for each in variants):
                if reference.local and isinstance(failure, StoreFailed):
                    raise failure
            if all(_made_of(each, reference) or (each.failure and not each.own) for each in variants):
                break
        return replace(reference, name=name)

    def meanings(self) -> list[Meaning]:
        """The meaning of each bare name of which several variants are here, as far as folders can be read."""
        groups: dict[Name, list[Model]] = {}
        for model in self.models([]):
            groups.setdefault(model.key.tagged(None), []).append(model)
        return [self._meaning(models) for models in groups.values() if len(models) > 1]

    def _meaning(self, models: Sequence[Model]) -> Meaning:
        """The meaning of the bare name of these variants, at least one."""
        bare = models[0].key.tagged(None)
        variants = [LevelHere(str(each.key.tag), each.size, each.modified, each.automatic_bytes) for each in models]
        if len(models) == 1:
            return decide(bare, variants, "", "")
        return decide(bare, variants, self._noted(self.pin_path(bare)), self._noted(self.choice_path(bare)))

    def is_pinned(self, name: Name) -> bool:
        """Whether the user wants the bare name to mean this variant. Raises StoreFailed."""
        return self._noted(self.pin_path(name)) == name.tag

    def _noted(self, path: Path) -> str:
        """The tag in a file of one line, "" without the file. Raises StoreFailed."""
        return (reading.contents(path, _LONGEST_CHOICE) or b"").decode("utf-8", "replace").strip()

    def _find(self, name: Name, reference: Reference) -> Model | None:
        """The model that a candidate means, None where it is not here or was made of another folder."""
        if name.tag is not None:
            found = self.read(self.existing(name))
            return found if found and _made_of(found, reference) else None
        models = [] if reference.level else [*filter(_of(reference), self.variants(name))]
        return self.read(self._meaning(models).name) if models else None

    def _usable(self, name: Name, path: Path, stamp: Stamp) -> Model:
        """The model whose manifest is in this state. Raises StoreDamaged, StoreFailed."""
        known = self._known.get(path)
        if known is None or known[0] != stamp:
            shown = name.display
            data = manifest.read(path, shown)
            contents = manifest.parse(data, shown)
            known = (stamp, self._model(name, data, contents, stamp.modified), contents)
            self._known[path] = known
        self._check_blobs(name, known[2])
        return known[1]

    def _broken(self, name: Name, path: Path, stamp: Stamp, failure: StoreDamaged | StoreFailed) -> Model:
        """A model that cannot be used, as far as its manifest is readable."""
        known = self._known.get(path)
        if known is not None and known[0] == stamp:
            return replace(known[1], failure=failure)
        return Model(name.display, name, "", 0, stamp.modified, {}, {}, path, "", failure=failure)

    def _model(self, name: Name, data: bytes, contents: Manifest, modified: datetime) -> Model:
        shown, weights, params = name.display, contents.layer(manifest.MODEL), contents.layer(manifest.PARAMS)
        adapters = [layer for layer in contents.layers if layer.media_type == manifest.ADAPTER]
        main, turns = weights or next(iter(adapters), None), contents.layer(manifest.MESSAGES)
        draft = contents.layer(manifest.DRAFT)
        if main is None:
            raise manifest.damaged(shown, "its manifest lists no weights")
        return Model(
            name=shown,
            key=name,
            digest=hashlib.sha256(data).hexdigest(),
            size=contents.size,
            modified=modified,
            config=manifest.read_object(self.blob(contents.config.digest), shown),
            params=manifest.read_object(self.blob(params.digest), shown) if params else {},
            blob=self.blob(main.digest),
            blob_digest=main.digest,
            adapters=tuple(LayerBlob(self.blob(layer.digest), layer.digest, layer.size) for layer in adapters),
            is_adapter=weights is None,
            draft=LayerBlob(self.blob(draft.digest), draft.digest, draft.size) if draft else None,
            system="\n".join(self._texts(contents, manifest.SYSTEM, shown)),
            licenses=tuple(self._texts(contents, manifest.LICENSE, shown)),
            template="\n".join(self._texts(contents, manifest.TEMPLATE, shown)),
            messages=manifest.read_messages(self.blob(turns.digest), shown) if turns else (),
        )

    def _texts(self, contents: Manifest, kind: str, name: str) -> list[str]:
        """The texts in a manifest's layers of one type. Raises StoreDamaged, StoreFailed."""
        found = [layer.digest for layer in contents.layers if layer.media_type == kind]
        return [manifest.read_text(self.blob(each), name) for each in found]

    def _check_blobs(self, name: Name, contents: Manifest) -> None:
        """Compare the sizes of a manifest's blobs with what it says. Raises StoreDamaged, StoreFailed."""
        for layer in contents.blobs:
            blob = f"its blob `{layer.digest[:19]}`"
            status = reading.status(self.blob(layer.digest))
            if status is None:
                raise manifest.damaged(name.display, f"{blob} is missing")
            if not stat.S_ISREG(status.st_mode):
                raise manifest.damaged(name.display, f"{blob} is no regular file")
            if status.st_size != layer.size:
                raise manifest.damaged(name.display, f"{blob} has {status.st_size:,} bytes instead of {layer.size:,}")
            if not self.shared.is_as_noted(layer.digest, self.blob(layer.digest), status):
                raise manifest.damaged(name.display, f"{blob} is shared with another program, which changed it")

    def similar(self, reference: Reference) -> list[str]:
        """Names of models here, and `demo`, that look like this one, the most alike first."""
        own = reference.name.tagged(None).display
        bare = {"demo", *(name.tagged(None).display for name in self._legible_names())} - {own}
        return difflib.get_close_matches(own, sorted(bare), n=3, cutoff=0.7)

    def _not_found(self, text: str, reference: Reference) -> ModelNotFound:
        names = self._legible_names()
        candidates = [candidate.tagged(None) for candidate in _candidates(reference)]
        variants = [name.display for name in names if any(name.tagged(None).same(other) for other in candidates)]
        # A relative path stays as it came: where the daemon's folder lies is nobody's concern.
        pull = f"`lm pull {text if reference.kind == 'folder' else reference.text}` brings it in"
        if variants and reference.kind != "folder":
            return ModelNotFound(f"there is no such variant as `{text}`", f"there is `{'`, `'.join(variants)}`; {pull}")
        close = self.similar(reference)
        hint = f"did you mean `{'` or `'.join(close)}`? {pull}" if close else pull
        return ModelNotFound(f"model `{text}` is not here", hint)

    def _legible_names(self) -> list[Name]:
        """All names, as far as their folders can be read: for suggestions only."""
        found: list[Name] = []
        with contextlib.suppress(StoreFailed):
            found.extend(self.names())
        return found


def is_meant(text: str, model: Model) -> bool:
    """Whether a name may mean this model, be it in the store or not; a bare one means all variants. Raises BadName."""
    reference = parse(text)
    key = model.key.tagged(None) if reference.level is None else model.key
    names = (name for name in _candidates(reference))
    return any(name.same(key if name.tag is None else model.key) for name in names) and _made_of(model, reference)


def _of(reference: Reference) -> Callable[[Model], bool]:
    return lambda model: _made_of(model, reference)


def _made_of(model: Model, reference: Reference) -> bool:
    """Whether a reference may mean a model: two folders may have the same name, and a path means one of them."""
    if not reference.local or isinstance(model.failure, StoreFailed):
        return True
    return model.own.get("source") == reference.origin


def _candidates(reference: Reference) -> list[Name]:
    """The names that a reference may have in the store: a single word is a model made here, else one of Ollama's.

    `library/WORD` is what Ollama's clients call such a word: one of Ollama's, else a model made here.
    """
    name = reference.name
    tag = None if (name.tag or "").lower() == LATEST else name.tag
    own = Name(LOCAL, LIBRARY, name.model, tag)
    if reference.kind == "bare":
        return [own, name]
    return [*reference.names, *([own] if reference.kind == "ollama" and name.namespace == LIBRARY else [])]


def _stamp(path: Path) -> Stamp | None:
    status = reading.status(path)
    return None if status is None else Stamp(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
