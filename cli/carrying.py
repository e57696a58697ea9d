"""Models on their way, shown: a bar for each blob on a terminal, a line for each phase elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from cli import console

if TYPE_CHECKING:
    from rich.console import Console

Line = dict[str, Any]
_OUTCOMES = {"there": "is there already", "mounted": "is there already, in another repository"}
# Bytes; a bar for less would be gone before it is seen.
_SHOWN = 1 << 20


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


def _on(terminal: Console, lines: Iterable[Line]) -> Line:
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
    )
    line: Line = {}
    with ExitStack() as stack:
        bars, tasks = None, dict[str, progress.TaskID]()
        for line in lines:
            if "total" in line:
                if line["total"] >= _SHOWN and line["digest"] not in tasks:
                    bars = bars or stack.enter_context(progress.Progress(*columns, console=terminal))
                    tasks[line["digest"]] = bars.add_task(line["status"], total=line["total"])
                if bars and line["digest"] in tasks:
                    text = _OUTCOMES.get(line.get("outcome", ""), "")
                    shown = f"{line['digest'][7:19]} {text}" if text else line["status"]
                    bars.update(tasks[line["digest"]], completed=line["completed"], description=shown)
            elif line.get("phase") != "done":
                terminal.print(line["status"], style="dim", markup=False)
    return line
