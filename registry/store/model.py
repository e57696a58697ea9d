"""A model as the store tells of it: its name, its files, its settings."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from registry.errors import StoreDamaged, StoreFailed
from registry.names import Name


class LayerBlob(NamedTuple):
    """A GGUF file beside the weights, an adapter's or a draft model's: its path, its digest, its length in bytes."""

    path: Path
    digest: str
    size: int


@dataclass(frozen=True)
class Model:
    """A variant of a model in the store.

    - `key`: its name; `name`: the same as displayed. `digest`: the manifest's SHA-256 in hexadecimal.
    - `size`: bytes of all blobs. `modified`: the manifest's time. `blob`, `blob_digest`: the weights.
    - `config`, `params`: the JSON of its config blob and of its parameters blob.
    - `adapters`: adapters that change its weights. One that `is_adapter` has no weights of its own: `blob` is then its
      adapter's file, and `own["adapter"]` says for which model it is.
    - `draft`: the file of a model that drafts for it. One that has a name of its own is named in `own["draft"]`.
    - `system`: instructions that a conversation begins with where it has none of its own. `licenses`: their texts.
    - `template`: a chat template in Go's language, "" without one. `messages`: turns with which its chats begin.
    - `card`: its quality card, {} where nobody measured these weights (`server/quality/card.py` has its fields).
    - `failure`: the reason why it cannot be used, None when it can. StoreDamaged: something is missing or wrong;
      StoreFailed: something cannot be read.
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
    adapters: tuple[LayerBlob, ...] = ()
    is_adapter: bool = False
    draft: LayerBlob | None = None
    system: str = ""
    licenses: tuple[str, ...] = ()
    template: str = ""
    messages: tuple[dict[str, str], ...] = ()
    card: dict[str, Any] = field(default_factory=dict)
    failure: StoreDamaged | StoreFailed | None = None

    @property
    def digests(self) -> set[str]:
        """The digests of its manifest, and of earlier manifests without its card or its improvement; hexadecimal."""
        earlier = self.improved.get("was")
        before = [self.card.get("manifest"), *(earlier if isinstance(earlier, list) else [])]
        return {self.digest, *(each for each in before if isinstance(each, str) and each)}

    @property
    def problem(self) -> str:
        """The message of `failure`, "" where there is none."""
        return str(self.failure or "")

    @property
    def own(self) -> dict[str, Any]:
        """The notes that lm made when it brought the model in; empty where another program made it."""
        notes = self.config.get("lm")
        return notes if isinstance(notes, dict) else {}

    @property
    def own_template(self) -> str:
        """The template, in Go's language, that comes before the one in its file; "" where that counts.

        Its maker wrote it (`lm create`), or the file has none.
        """
        return self.template if self.own.get("template") in ("own", "only") else ""

    @property
    def improved(self) -> dict[str, Any]:
        """The notes on how it was improved (`server/improving/` writes them); {} where it was not."""
        notes = self.own.get("improved")
        return notes if isinstance(notes, dict) else {}

    @property
    def older(self) -> str:
        """The digest of the manifest that it had before it was improved, hexadecimal; "" where it was not."""
        return str(self.improved.get("older", ""))

    @property
    def base(self) -> str:
        """The name of the model that an adapter is for, "" for a model, and where nobody knows."""
        notes = self.own.get("adapter")
        return str(notes.get("base", "")) if isinstance(notes, dict) else ""

    @property
    def own_draft(self) -> Model | None:
        """The model in its `draft`; None without one."""
        if self.draft is None:
            return None
        path, digest, size = self.draft
        name = f"{self.name} (its draft)"
        return replace(self, name=name, blob=path, blob_digest=digest, size=size, adapters=(), draft=None)

    @property
    def automatic_bytes(self) -> int:
        """Bytes of weights at the level that a pull without a level would have made, 0 where that was not noted."""
        size = self.own.get("automatic_bytes")
        return size if isinstance(size, int) else 0
