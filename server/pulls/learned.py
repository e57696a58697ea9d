"""The statistics by which a pull weighs errors: checked, and kept in its folder, for another pull that goes on.

ingest/id/statistics         a file of importance (`quant/importance.py`)
ingest/id/harms              what each type would do to the output, where types are chosen by that
ingest/id/statistics.json    its name, and the digests of its texts
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from quant.errors import BadImportance
from quant.feedback.stored import StoredGrams
from quant.importance import Importance
from quant.levels.harms import MeasuredHarms
from registry.store import fsops, reading
from registry.store.fsops import plainly
from server.pulls.frames import Effort, PullTask, Statistics

FILE, HARMS, NOTE = "statistics", "harms", "statistics.json"
_LONGEST = 1 << 20
_SHOWN = 8


@dataclass(frozen=True)
class PullStatistics:
    """The statistics of one pull; None for all where it weighs errors by the weights alone."""

    folder: Path
    statistics: Statistics | None = None
    importance: Importance | None = None
    feedback: StoredGrams | None = None
    harms: MeasuredHarms | None = None

    @classmethod
    def of(cls, task: PullTask) -> PullStatistics:
        """The statistics of a task; an earlier pull's where the task has none. Raises BadImportance."""
        folder = Path(task.folder)
        statistics = None if task.effort == "quick" else task.statistics or _left(folder)
        if statistics is None:
            if task.effort not in ("", "quick"):
                raise BadImportance("the statistics of this pull are gone", "`lm quantize` collects them again")
            return cls(folder)
        try:
            grams = StoredGrams(Path(statistics.grams), os.cpu_count() or 1) if statistics.grams else None
            harms = MeasuredHarms.read(Path(statistics.harms)) if statistics.harms else None
            return cls(folder, statistics, Importance.read(Path(statistics.path), statistics.name), grams, harms)
        except OSError as error:
            raise BadImportance(f"`{statistics.name}` cannot be read: {error.strerror}", "name it again") from None

    @property
    def all(self) -> tuple[Importance | None, StoredGrams | None, MeasuredHarms | None]:
        """Importance, Gram matrices and harms, as a conversion takes them."""
        return self.importance, self.feedback, self.harms

    def keep(self) -> None:
        """Keep them in the folder, or take away what an earlier pull left there. Raises DiskFull, StoreFailed."""
        file, harms, note = self.folder / FILE, self.folder / HARMS, self.folder / NOTE
        with plainly(self.folder.parents[1]):
            if self.statistics is None:
                for left in (note, file, harms):
                    fsops.unlink(left)
            elif Path(self.statistics.path) != file:
                fsops.unlink(note)
                shutil.copyfile(self.statistics.path, file)
                fsops.fsync(file)
                fsops.replace(harms, self.harms.data) if self.harms else fsops.unlink(harms)
                fsops.replace(note, msgspec.json.encode(self.statistics))

    def remarks(self) -> list[str]:
        """Sentences for the user: by what errors are weighed, and the experts that no token was routed to."""
        if self.statistics is None or self.importance is None:
            return []
        found = [f"errors are weighed by {self.statistics.name}"]
        found += ["errors of a column are made up for in the others of its row"] if self.feedback else []
        for name, experts in self.importance.unrouted().items():
            shown = ", ".join(map(str, experts[:_SHOWN])) + (" …" if len(experts) > _SHOWN else "")
            found.append(
                f"no token was routed to {len(experts)} experts of `{name}` ({shown}): they weigh as the others do"
            )
        return found

    @property
    def note(self) -> dict[str, Any]:
        """The notes about them in the model's manifest."""
        if self.statistics is None:
            return {}
        effort: Effort = "best" if self.feedback else "importance"
        return {"effort": effort, "statistics": self.statistics.name, "learned": self.statistics.marks}


def _left(folder: Path) -> Statistics | None:
    """The statistics that an earlier pull kept whole; the note is written last."""
    data = reading.contents(folder / NOTE, _LONGEST)
    with suppress(msgspec.MsgspecError):
        if data and reading.status(folder / FILE):
            left = msgspec.json.decode(data, type=Statistics)
            harms = str(folder / HARMS) if left.harms else ""
            return msgspec.structs.replace(left, path=str(folder / FILE), harms=harms)
    return None
