"""`lm pull`: bring a model in and show how it goes: a bar on a terminal, a line for each phase elsewhere, or NDJSON."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import click

from cli import console
from cli.client import Client
from cli.errors import Failure
from cli.naming import complete, explained, reference

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Line = dict[str, Any]


@click.command()
@click.argument("name", shell_complete=complete)
@click.option("--level", metavar="LEVEL", help="A level of your own choosing, such as Q4_K_M; otherwise the best one.")
@click.option("--json", "as_json", is_flag=True, help="Print progress as lines of JSON.")
def command(name: str, level: str | None, as_json: bool) -> None:
    """Bring a model in, quantized while it is read to the best level that this machine can hold.

    NAME is `demo`, `org/repo` on the hub, or a folder that begins with `/`, `./`, `../` or `~`; `:LEVEL` may follow.
    """
    wanted = reference(name, level)
    client = Client()
    if as_json:
        try:
            for line in told(client, wanted):
                console.out(json.dumps(line, ensure_ascii=False))
        except Failure as error:
            console.out(json.dumps({"status": "error", "error": str(error), "hint": error.hint, "code": error.code}))
            raise
    else:
        bring_in(client, wanted, name)


def bring_in(client: Client, wanted: str, typed: str) -> str:
    """Pull a model and show it; the name under which it lies then. Raises Failure."""
    terminal = console.fancy()
    try:
        with closing(told(client, wanted)) as lines:
            last = _show_plainly(lines) if terminal is None else _show_on(terminal, lines)
    except Failure as error:
        raise explained(error, typed) from None
    except KeyboardInterrupt:
        console.note("the pull is cancelled, nothing of it is kept")
        raise
    console.note(f"`{last['name']}` is here")
    return str(last["name"])


def told(client: Client, wanted: str) -> Generator[Line]:
    """What the daemon says while it pulls, to the line of success. Raises Failure."""
    return client.stream("/api/pull", {"model": wanted})


def _show_plainly(lines: Iterable[Line]) -> Line:
    """One line for each phase; the last one that came."""
    phase, line = "", {}
    for line in lines:
        if line["phase"] not in (phase, "done"):
            phase = line["phase"]
            console.note(line["status"])
    return line


def _show_on(terminal: Console, lines: Iterable[Line]) -> Line:
    """A bar for a phase that counts bytes, a spinner for the others; the last line that came."""
    phase, line, bar = "", {}, None
    with ExitStack() as shown:
        for line in lines:
            if line["phase"] != phase:
                phase, bar = line["phase"], None
                shown.close()
                if phase == "planned":
                    terminal.print(line["status"], style="dim", markup=False)
                elif phase != "done" and "total" not in line:
                    shown.enter_context(terminal.status(line["status"]))
            if "total" in line:
                if bar is None:
                    shown.close()
                    bar = shown.enter_context(_bar(terminal))
                    task = bar.add_task(line["status"], total=line["total"])
                bar.update(task, completed=line["completed"])
    return line


def _bar(terminal: Console) -> Progress:
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(compact=True),
        console=terminal,
    )
