"""`lm pull`: bring a model in and show how it goes: a bar on a terminal, a line for each phase elsewhere, or NDJSON."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterable
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import click

from cli import console
from cli.client import Client
from cli.errors import Failure
from cli.naming import complete, explained, reference
from runtime.units import size_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Line = dict[str, Any]


@click.command()
@click.argument("name", shell_complete=complete)
@click.option("--level", metavar="LEVEL", help="A level of your own choosing, such as Q4_K_M; otherwise the best one.")
@click.option("--detach", is_flag=True, help="Leave once the level is known; the daemon brings the model in.")
@click.option(
    "--limit-rate",
    metavar="RATE",
    help="Bytes per second at most that this pull takes from the network, such as `20M`.",
)
@click.option("--pre", metavar="NAME", help="The pre-tokenizer, where a pull could not recognise it and asks for it.")
@click.option("--json", "as_json", is_flag=True, help="Print progress as lines of JSON.")
def command(name: str, level: str | None, detach: bool, limit_rate: str | None, pre: str | None, as_json: bool) -> None:
    """Bring a model in, quantized while it is read to the best level that this machine can hold.

    NAME is `demo`, `org/repo` on the hub, or a folder that begins with `/`, `./`, `../` or `~`; `:LEVEL` may follow, or
    `:FILE.gguf` where such files are published.
    Ctrl-C pauses: the next `lm pull` of that name goes on, `lm rm` removes what is there.
    """
    client = Client()
    body = {"model": reference(name, level), "detach": detach, "limit_rate": _rate(limit_rate), "pre": pre or ""}
    body |= client.hub()
    if as_json:
        try:
            for line in _lines(client, body):
                console.out(json.dumps(line, ensure_ascii=False))
        except Failure as error:
            console.out(json.dumps({"status": "error", "error": str(error), "hint": error.hint, "code": error.code}))
            raise
    else:
        _bring_in(client, body, name)


def bring_in(client: Client, wanted: str, typed: str, pre: str | None = None) -> str:
    """Pull a model and show it; the name under which it lies then. Raises Failure."""
    return str(_bring_in(client, {"model": wanted, "pre": pre or "", **client.hub()}, typed)["name"])


def _bring_in(client: Client, body: Line, typed: str) -> Line:
    """The last line that was told, shown as all before it."""
    terminal = console.fancy()
    try:
        with closing(_lines(client, body)) as lines:
            last = _show_plainly(lines) if terminal is None else _show_on(terminal, lines)
    except Failure as error:
        raise explained(error, typed) from None
    except KeyboardInterrupt:
        name = body["model"]
        console.note(f"`lm pull {name}` goes on with it, `lm rm {name}` removes what is there")
        raise
    if last["phase"] == "done":
        console.note(f"`{last['name']}` is here")
    else:
        console.note("the daemon goes on; `lm list --partial` shows how far it is")
    return last


def _lines(client: Client, body: Line) -> Generator[Line]:
    """What the daemon says while it pulls: to the line of success, or of the level where it goes on alone."""
    with closing(client.stream("/api/pull", body)) as lines:
        for line in lines:
            yield line
            if body.get("detach") and line["phase"] == "planned":
                return


def _rate(text: str | None) -> float:
    """Bytes per second. Raises Failure."""
    if text is None:
        return 0.0
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([KMG]?)B?(?:/s)?", text, re.IGNORECASE)
    rate = float(found[1]) * {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}[found[2].upper()] if found else 0.0
    if rate < 1000:
        raise Failure(f"`{ascii(text)[1:-1]}` is no rate", "bytes per second, at least 1000: `500K`, `20M`", "usage")
    return rate


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
            if line["phase"] != phase:
                phase, bar = line["phase"], None
                shown.close()
                if phase in ("planned", "note"):
                    terminal.print(line["status"], style="dim", markup=False)
                elif phase != "done" and "total" not in line:
                    shown.enter_context(terminal.status(line["status"]))
            if "total" in line:
                if bar is None:
                    shown.close()
                    bar = shown.enter_context(_bar(terminal))
                    task = bar.add_task(line["status"], total=line["total"], pace="")
                bar.update(task, completed=line["completed"], pace=_pace(line))
    return line


def _bar(terminal: Console) -> Progress:
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TextColumn("{task.fields[pace]}"),
        console=terminal,
    )


def _pace(line: Line) -> str:
    """How fast it goes and how long it still takes, as the daemon tells, which knows what an earlier pull brought."""
    rate = f"{size_text(line['rate'])}/s" if line["rate"] else ""
    left = f"{console.span(line['eta'])} left" if line["eta"] else ""
    return "  ".join(filter(None, (rate, left)))
