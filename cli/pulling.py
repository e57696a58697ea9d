"""Bringing a model in, shown while it goes on: a bar on a terminal, a line for each phase elsewhere."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Iterable
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

from cli import console
from cli.client import Client
from cli.naming import explaining, mistakable
from runtime.units import size_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Line = dict[str, Any]


def bring_in(client: Client, body: Line, typed: str) -> Line:
    """Pull a model and show how it goes; the last line of the daemon's answer, with the `name` under which it lies.

    `body` is the body of `/api/pull`, `typed` the name as the user wrote it. Raises Failure.
    """
    if "/" in typed and (hint := mistakable(typed)):
        console.note(f"note: `{typed}` is looked for on the hub; {hint}", "yellow")
    try:
        with explaining(typed), closing(lines(client, body)) as answer:
            last = show_lines(answer)
    except KeyboardInterrupt:
        name = shlex.quote(body["model"])  # the query of a URL may hold `&`
        console.note(f"`lm pull {name}` goes on with it, `lm rm --partial {name}` removes what is there")
        raise
    if last["phase"] == "done":
        console.note(f"`{last['name']}` is here")
    else:
        console.note("the daemon goes on; `lm list --partial` shows how far it is")
    return last


def show_lines(lines: Iterable[Line]) -> Line:
    """Show the lines of a model on its way; the last one that came. Raises Failure."""
    terminal = console.fancy()
    return _show_plainly(lines) if terminal is None else _show_on(terminal, lines)


def lines(client: Client, body: Line) -> Generator[Line]:
    """The lines of the daemon's answer, up to the last; with `detach`, up to the line that names the level."""
    with closing(client.stream("/api/pull", body)) as answer:
        for line in answer:
            yield line
            if body.get("detach") and line["phase"] == "planned":
                return


def _show_plainly(lines: Iterable[Line]) -> Line:
    """One line for each phase; the last one that came."""
    phase, line = "", {}
    for line in lines:
        if line["phase"] not in (phase, "done") or line["phase"] == "note":
            phase = line["phase"]
            console.note(line["status"])
    return line


def _show_on(terminal: Console, lines: Iterable[Line]) -> Line:
    """A bar for a phase that counts bytes, a spinner for the others; the last line that came."""
    phase, line, bar = "", {}, None
    with ExitStack() as shown:
        for line in lines:
            if line["phase"] in ("planned", "note"):  # notes follow each other
                terminal.print(line["status"], style="dim", markup=False)
            elif line["phase"] != phase and not (bar and "total" in line):
                phase, bar = line["phase"], None
                shown.close()
                if phase != "done" and "total" not in line:
                    shown.enter_context(terminal.status(line["status"]))
            if "total" in line:
                if bar is None:
                    shown.close()
                    bar = shown.enter_context(_bar(terminal))
                    task = bar.add_task(line["status"], total=line["total"], rate="")
                bar.update(task, description=line["status"], completed=line["completed"], rate=_rate_text(line))
    return line


def _bar(terminal: Console) -> Progress:
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TextColumn("{task.fields[rate]}"),
        console=terminal,
    )


def _rate_text(line: Line) -> str:
    """The rate and the time left, by the daemon's figures: it alone knows how much an earlier pull brought."""
    rate = f"{size_text(line['rate'])}/s" if line["rate"] else ""
    left = f"{console.span(line['eta'])} left" if line["eta"] else ""
    return "  ".join(filter(None, (rate, left)))
