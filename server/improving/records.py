"""Records of improvements in the home: the wishes that are left, and how the others ended. One file for each model.

    improve/ID.json    a `ImprovementRecord`
    improve/ID.txt     the text to learn from, where the user gave one

An outcome counts for the weights that it was about: a model that is brought in anew is improved anew. `off` counts
until it is taken back.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Literal

import msgspec

from registry.store import fsops, reading
from registry.store.fsops import plainly
from registry.store.ingest import folder_name
from registry.store.model import Model

State = Literal["wanted", "off", "better", "no better", "failed", "rolled back"]
_LONGEST = 1 << 20
_MOST_TEXT = 64 << 20


class ImprovementRecord(msgspec.Struct, frozen=True):
    """The state of one model: its `name`, the digest of the `weights` that it is about, and a sentence with the reason.

    A wish may take its source from a `hub`, or learn from a `text`. `before` and `after` are the cards of both files.
    `at` is an ISO time, `version` lm's.
    """

    name: str
    weights: str
    state: State
    sentence: str
    at: str
    version: str
    hub: bool = False
    text: bool = False
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}


class Records:
    """The records in a folder. Functions block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def all(self) -> list[ImprovementRecord]:
        """All that can be read, the newest first. Raises StoreFailed."""
        names = (name for name in reading.entries(self._folder) if name.endswith(".json"))
        found = [record for name in names if (record := self._read(self._folder / name)) is not None]
        return sorted(found, key=lambda each: each.at, reverse=True)

    def of(self, name: str) -> ImprovementRecord | None:
        """The record of the model of this name. Raises StoreFailed."""
        return self._read(self._path(name))

    def note(self, record: ImprovementRecord, text: str = "") -> None:
        """Write a record, and the text of a wish. Raises DiskFull, StoreFailed."""
        path = self._path(record.name)
        with plainly(self._folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if text:
                fsops.replace(path.with_suffix(".txt"), text.encode(errors="replace"))
            fsops.replace(path, msgspec.json.encode(record))
            if not record.text:
                fsops.unlink(path.with_suffix(".txt"))

    def text(self, record: ImprovementRecord) -> str:
        """The text of a wish, "" for lm's own. Raises StoreFailed."""
        path = self._path(record.name).with_suffix(".txt")
        return (reading.contents(path, _MOST_TEXT) or b"").decode("utf-8", "replace") if record.text else ""

    def forget(self, name: str) -> None:
        """Remove the record of a model. Raises StoreFailed."""
        with plainly(self._folder):
            fsops.unlink(self._path(name))
            fsops.unlink(self._path(name).with_suffix(".txt"))

    def _path(self, name: str) -> Path:
        return self._folder / f"{folder_name(name)}.json"

    def _read(self, path: Path) -> ImprovementRecord | None:
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
            data = reading.contents(path, _LONGEST)
            return msgspec.json.decode(data, type=ImprovementRecord) if data else None
        return None


def speaks_of(record: ImprovementRecord, model: Model) -> bool:
    """Whether a record is about these weights, or about the name whatever its weights are."""
    return record.state == "off" or record.weights == model.blob_digest
