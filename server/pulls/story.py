"""The lines of a piece of work, for any number of clients: all so far, then each change as it happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple


class _Entry(NamedTuple):
    """A line, and the number of the change that brought it."""

    version: int
    line: dict[str, Any]


class Story:
    """Lines with `status` and `phase`, in Ollama's form. `followers` counts the clients that read them."""

    def __init__(self) -> None:
        self.followers = 0
        self.ended = False
        self._entries: list[_Entry] = []
        self._version = 0
        self._changed = asyncio.Event()

    def add(self, line: dict[str, Any]) -> None:
        """Add a line; progress within a phase replaces the line before it."""
        self._version += 1
        last = self._entries[-1].line if self._entries else {}
        if "completed" in line and last.get("phase") == line["phase"]:
            self._entries.pop()
        self._entries.append(_Entry(self._version, line))
        self._wake()

    def end(self) -> None:
        """Say that no more lines will come."""
        self.ended = True
        self._wake()

    @property
    def progress(self) -> dict[str, Any]:
        """The last line that is more than a sentence: the phase, and how far it is."""
        lines = (entry.line for entry in reversed(self._entries))
        return next((line for line in lines if line.get("phase") not in (None, "note", "planned")), {})

    async def lines(self) -> AsyncGenerator[dict[str, Any]]:
        """Every line from the first on, then each change as it happens, until the end."""
        version = 0
        while True:
            changed = self._changed
            for entry in [entry for entry in self._entries if entry.version > version]:
                version = entry.version
                yield entry.line
            if self.ended and version == self._version:
                return
            await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
