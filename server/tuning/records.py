"""Figures of earlier tunes, a line of JSON each: what was measured of a level on this machine.

They belong to the weights that a level was made of, and to the machine: a record of other weights, another version of
lm or another processor is passed over. A torn line, as a power cut leaves it, is passed over too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runtime.small_files import replace_file
from server.config import VERSION
from server.tuning.goals import METRICS, Figures

FILE = "trials.jsonl"
_MOST = 2000  # lines that are kept


class Trials:
    """The records in a cache folder. A file that cannot be read counts as empty. For one thread at a time."""

    def __init__(self, folder: Path, processor: str) -> None:
        self._path = folder / FILE
        self._machine = {"version": VERSION, "processor": processor}

    def of(self, model: str, content: str) -> dict[str, dict[str, float]]:
        """Figures by what was made (`LEVEL EFFORT`), the newest of each."""
        wanted = self._machine | {"model": model, "content": content}
        found: dict[str, dict[str, float]] = {}
        for row in self._rows():
            if all(row.get(key) == value for key, value in wanted.items()) and isinstance(row.get("figures"), dict):
                figures = {name: row["figures"].get(name) for name in METRICS}
                known = {name: float(value) for name, value in figures.items() if isinstance(value, int | float)}
                found.setdefault(str(row.get("made")), {}).update(known)
        return found

    def add(self, model: str, content: str, made: str, figures: Figures) -> None:
        """Keep figures. Raises OSError."""
        rows = self._rows()[1 - _MOST :]
        rows.append(self._machine | {"model": model, "content": content, "made": made, "figures": dict(figures)})
        text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        replace_file(self._path, text.encode())

    def _rows(self) -> list[dict[str, Any]]:
        try:
            lines = self._path.read_bytes().splitlines()
        except OSError:
            return []
        rows = []
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                rows.append(row)
        return rows
