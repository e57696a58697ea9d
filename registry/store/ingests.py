"""Files on their way into a store: begun, gone on with, paused, thrown away; and the notes beside them.

A pull's file lies in `ingest/id`. One that nobody goes on with is in `ingest/new-id`. The file that is to take the
place of a model's own is in `ingest/beside-id`: it goes on as a pull does, and is none.
Functions block: call them from a thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection
from pathlib import Path

from registry.errors import StoreFailed
from registry.store import fsops, reading, recovery
from registry.store.finding import Finder
from registry.store.fsops import plainly
from registry.store.ingest import BESIDE, DETACHED, NEW, OWNERS, Ingest, folder_name
from registry.store.partial import read_journal, resumable


class Ingests(Finder):
    """The files that are made for one store. May be used by several threads."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.root = root
        self._ingests = root / "ingest"
        self._changing = threading.RLock()
        self._busy: set[Path] = set()

    def begin(self, title: str, *, new: bool = False, beside: bool = False) -> Ingest:
        """The ingest in which the file of `title` is made; one that was paused is resumed, unless it is `new`.

        `beside`: the file is to take the place of a model's own, and is no pull.

        Does not check that the disk has room, because the size is not known yet; `runtime/machine/choosing.py` does.
        Raises StoreFailed (also when `title` is being made already), DiskFull.
        """
        ingest = Ingest(title, self._folder(title, NEW if new else BESIDE if beside else ""))
        with self._changing, plainly(self.root):
            if ingest.folder in self._busy:
                raise StoreFailed(f"`{title}` is being made already", "wait until that has ended")
            recovery.restore(self, ingest.folder)
            if new or not ingest.journal:
                fsops.remove_tree(ingest.folder)
                fsops.mkdir(ingest.folder)
                if not new:
                    fsops.fsync_dir(self._ingests)
            self._busy.add(ingest.folder)
        return ingest

    def readdress(self, title: str, new: str) -> None:
        """Rename the paused ingest of `title` to `new`, unless `new` has an ingest. Raises StoreFailed, DiskFull."""
        before, after = self._folder(title), self._folder(new)
        with self._changing, plainly(self.root):
            if not {before, after} & self._busy and reading.status(after) is None:
                recovery.readdress(before, after, new)

    def pause(self, ingest: Ingest) -> None:
        """Keep the ingest if it can be resumed, else remove it; does nothing after a commit. Raises StoreFailed."""
        with self._changing, plainly(self.root):
            self._busy.discard(ingest.folder)
            recovery.restore(self, ingest.folder)
            if not ingest.journal:
                fsops.remove_tree(ingest.folder)

    def detach(self, title: str, note: bytes | None) -> None:
        """Keep a note in the ingest of `title`: whoever opens the store next goes on with it. None takes it away.

        Does nothing where there is no ingest. A note that cannot be written costs no more than itself.
        """
        self._note(self._folder(title) / DETACHED, note)

    def note_owners(self, title: str, owners: set[str]) -> None:
        """Note in the ingest of `title` whose it is, as `detach` does it."""
        self._note(self._folder(title) / OWNERS, "\n".join(sorted(owners)).encode())

    def _note(self, path: Path, note: bytes | None) -> None:
        with contextlib.suppress(OSError), self._changing:
            if note is None:
                fsops.unlink(path)
            elif path.parent.is_dir():
                fsops.replace(path, note)

    def abandon(self, ingest: Ingest) -> None:
        """Remove the ingest and its file; does nothing after a commit. Raises StoreFailed."""
        with self._changing, plainly(self.root):
            self._busy.discard(ingest.folder)
            fsops.remove_tree(ingest.folder)

    def partials(self, *, beside: bool = False) -> list[Ingest]:
        """The pulls that can be resumed, running ones included; or the files `beside` models. Raises StoreFailed."""
        names = [name for name in reading.entries(self._ingests) if not name.startswith(NEW)]
        folders = [self._ingests / name for name in names if name.startswith(BESIDE) == beside]
        found = [(folder, read_journal(folder)) for folder in folders if resumable(folder)]
        return [Ingest(journal.facts.title, folder) for folder, journal in found if journal]

    def drop_beside(self, kept: Collection[str]) -> None:
        """Throw away the files beside models but for `kept` titles and those in the making. Raises StoreFailed."""
        stay = {self._folder(title, BESIDE) for title in kept}
        with self._changing, plainly(self.root):
            for name in reading.entries(self._ingests):
                folder = self._ingests / name
                if name.startswith(BESIDE) and folder not in stay | self._busy:
                    fsops.remove_tree(folder)

    def _folder(self, title: str, kind: str = "") -> Path:
        return self._ingests / f"{kind}{folder_name(title)}"
