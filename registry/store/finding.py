"""Which model of the store a name means: a full name, a bare one, the path of a folder; and what comes close to it."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from registry.errors import ModelNotFound, StoreFailed
from registry.names import LATEST, LIBRARY, LOCAL, Name, Reference, parse
from registry.store import reading
from registry.store.catalog import Catalog, Model
from registry.store.meaning import LevelHere, Meaning, decide

_LONGEST_CHOICE = 256


class Finder(Catalog):
    """A catalog whose models are found by what users call them. May be used by several threads."""

    def resolve(self, text: str) -> Model:
        """The model that `text` means: a full name, or a bare one by the rule of `meaning.py`; case does not matter.

        Raises BadName, ModelNotFound (its hint names what comes close), StoreDamaged (the model is broken), StoreFailed
        (it cannot be read).
        """
        found = self.find(text)
        if found.failure:
            raise found.failure
        return found

    def find(self, text: str) -> Model:
        """As `resolve`, but a broken model is returned too, to be deleted."""
        reference = parse(text)
        for candidate in _candidates(reference):
            found = self._find(candidate, reference)
            if found is not None:
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
        variants = [
            LevelHere(str(each.key.tag), each.size, each.modified, each.automatic_bytes, bool(each.own.get("cut")))
            for each in models
        ]
        if len(models) == 1:
            return decide(bare, variants, "", "")
        return decide(bare, variants, self._noted(self.pin_path(bare)), self._noted(self.choice_path(bare)))

    def is_pinned(self, model: Model) -> bool:
        """Whether the user lets the bare name mean this variant. Raises StoreFailed."""
        return self._noted(self.pin_path(model.key)) == model.key.tag

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
    cut_of = model.own.get("origin") if model.own.get("cut") else None  # a part of the folder's model, and beside it
    return reference.origin in (model.own.get("source"), cut_of)


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
