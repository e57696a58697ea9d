"""Models on their way, shown: a bar for each blob on a terminal, a line for each phase elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from cli import console

if TYPE_CHECKING:
    from rich import progress
    from rich.console import Console

Line = dict[str, Any]
_OUTCOMES = {"there": "is there already", "mounted": "is there already, in another repository"}
# Bytes; a bar for less would be gone before it is seen.
_SHOWN = 1 << 20


class Counter:
    """A bar of bytes on a terminal, nothing elsewhere; `total` None where nobody knows it."""

    def __init__(self, title: str, total: int | None) -> None:
        self._title, self._total = title, total
        self._stack = ExitStack()
        self._bar: progress.Progress | None = None

    def __enter__(self) -> Counter:
        terminal = console.fancy()
        if terminal is not None:
            self._bar = self._stack.enter_context(_bars(terminal))
            self._task = self._bar.add_task(self._title, total=self._total)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, count: int) -> None:
        """Count bytes."""
        if self._bar is not None:
            self._bar.advance(self._task, count)


def show(lines: Iterable[Line], quiet: bool = False) -> Line:
    """Show lines as they come, unless `quiet`; the last one."""
    if quiet:
        return list(lines)[-1]
    terminal = console.fancy()
    return _plainly(lines) if terminal is None else _on(terminal, lines)


def _plainly(lines: Iterable[Line]) -> Line:
    before, line = "", {}
    for line in lines:
        text = line["status"]
        if text != before and line.get("phase") != "done":
            console.note(text)
        if outcome := _OUTCOMES.get(line.get("outcome", "")):
            console.note(f"{line['digest'][7:19]} {outcome}")
        before = text
    return line


def _bars(terminal: Console) -> progress.Progress:
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        console=terminal,
    )


def _on(terminal: Console, lines: Iterable[Line]) -> Line:
    line: Line = {}
    with ExitStack() as stack:
        bars, tasks = None, dict[str, progress.TaskID]()
        for line in lines:
            if "total" in line:
                if line["total"] >= _SHOWN and line["digest"] not in tasks:
                    bars = bars or stack.enter_context(_bars(terminal))
                    tasks[line["digest"]] = bars.add_task(line["status"], total=line["total"])
                if bars and line["digest"] in tasks:
                    text = _OUTCOMES.get(line.get("outcome", ""), "")
                    shown = f"{line['digest'][7:19]} {text}" if text else line["status"]
                    bars.update(tasks[line["digest"]], completed=line["completed"], description=shown)
            elif line.get("phase") != "done":
                terminal.print(line["status"], style="dim", markup=False)
    return line
