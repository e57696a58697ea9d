"""The wish for a model: the weights that it is made of, and settings and texts of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quant.cuts.wish import NO_CUT, Cut
from registry.names import Name
from registry.store.catalog import Model
from server.pulls.frames import Statistics


@dataclass(frozen=True)
class CreateWish:
    """A model to be made, `name`: of `model`, which is here, or of `path` on this machine, or of uploaded `files`.

    `files` and `adapters` map names of files to digests of blobs in the store. `level` is the level to make, None for
    the weights as they are. `template`, `system`: None leaves them to the model that it is made of, "" takes them away.
    `draft` is the model that drafts for the new one; or `draft_files` are uploaded ones of it, made at `draft_level`.
    `parameters` are checked. `base_source` is the source of the model for which adapters are converted, "" unknown.
    `origin` says where a `path` comes from, which is the path itself where it is None.
    With `statistics` errors are weighed by them while a level is made.
    A `path` beside a `model` has the same weights at another level, to be made of.
    `cut` drops parts of the `model`; the text `sample` says which tokens stay, and must have the same ones afterwards.
    `marks` are entries of the config that change nothing here: renderer, parser, requires.
    """

    name: Name
    model: Model | None = None
    path: str = ""
    origin: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    adapters: Mapping[str, str] = field(default_factory=dict)
    level: str | None = None
    draft: Model | None = None
    draft_files: Mapping[str, str] = field(default_factory=dict)
    draft_level: str | None = None
    template: str | None = None
    system: str | None = None
    licenses: Sequence[str] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[Mapping[str, str]] = ()
    base_source: str = ""
    cut: Cut = NO_CUT
    sample: str = ""
    marks: Mapping[str, str] = field(default_factory=dict)
    statistics: Statistics | None = None

    @property
    def cuts(self) -> bool:
        """Whether something is left out of the model."""
        return bool(self.sample) or not self.cut.empty

    @property
    def anew(self) -> bool:
        """Whether the weights of a model that is here are made anew, at another level or cut."""
        return self.level is not None or self.cuts

    @property
    def uploads(self) -> list[str]:
        """The digests of all uploaded files."""
        return [*self.files.values(), *self.adapters.values(), *self.draft_files.values()]
