"""Measurements of quality, asked for and shown while they go on; their texts, and the options of their commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from cli import console
from cli.client import Client
from cli.errors import Failure

Line = dict[str, Any]
_MOST = 24 << 20
text_option = click.option("--text", metavar="FILE", help="Read this text instead of lm's own; `-` is stdin.")
windows_option = click.option(
    "--windows", type=click.IntRange(1, 10_000), metavar="N", help="Windows of 512 tokens to read, at most."
)


def measure(client: Client, body: dict[str, Any]) -> Line:
    """Measure by `/lm/quality`, and show how far it is; the last line. Ctrl-C stops it, and asking again goes on."""
    lines = client.stream("/lm/quality", body)
    terminal = console.fancy()
    if terminal is None:
        return _plainly(lines)
    from rich import progress

    line: Line = {}
    columns = (progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn())
    with progress.Progress(*columns, progress.TimeRemainingColumn(), console=terminal) as bars:
        tasks: dict[str, progress.TaskID] = {}
        for line in lines:
            if "completed" not in line:
                if line.get("phase") != "done":
                    terminal.print(line["status"], style="dim", markup=False)
                continue
            if line["phase"] not in tasks:
                tasks[line["phase"]] = bars.add_task(line["status"], total=line["total"])
            bars.update(tasks[line["phase"]], completed=line["completed"], total=line["total"])
    return line


def _plainly(lines: Any) -> Line:
    before, line = "", {}
    for line in lines:
        if line["status"] != before and line.get("phase") != "done":
            console.note(line["status"])
        before = line["status"]
    return line


def text_of(path: str | None) -> str:
    """The text in a file, or on stdin for `-`; "" for None. Raises Failure."""
    if path is None:
        return ""
    try:
        data = sys.stdin.buffer.read(_MOST + 1) if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise Failure(f"`{path}` cannot be read ({error.strerror})", "name a file of plain text") from None
    if len(data) > _MOST:
        raise Failure(f"`{path}` has more than {_MOST >> 20} MiB", "some hundred kilobytes are plenty")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise Failure(f"`{path}` is no text in UTF-8", "name a file of plain text") from None
    if not text.strip():
        raise Failure(f"`{path}` is empty", "name a file with some pages of text")
    return text
