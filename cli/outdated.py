"""Models that their source has in a newer revision: shown, and named for a pull once the user has agreed."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from cli import console
from cli.client import Client


def newer(client: Client, names: list[str], *, yes: bool, as_json: bool) -> tuple[str, ...]:
    """The names to pull again; none where the user does not agree, or cannot be asked. Raises Failure."""
    with console.status("asking the sources"):
        bodies = [{"model": name, **client.hub()} for name in names or [""]]
        rows = [row for body in bodies for row in client.ask("POST", "/lm/outdated", body)["models"]]
    old = [row for row in rows if row["state"] == "outdated"]
    if as_json:
        for row in rows:
            console.out(json.dumps(row, ensure_ascii=False))
    else:
        _show(rows, old)
    wanted = tuple(dict.fromkeys(row["pull"] for row in old))
    return wanted if wanted and (yes or (not as_json and _agreed(len(wanted)))) else ()


def _show(rows: list[dict[str, Any]], old: list[dict[str, Any]]) -> None:
    if old:
        cells = [(row["name"], row["source"], _short(row["revision"]), _short(row["newest"])) for row in old]
        console.table(("NAME", "SOURCE", "HERE", "NEWEST"), cells)
    for row in rows:
        if row["state"] == "unknown":
            console.note(f"{row['name']}: not known: {row['reason']}")
    current = sum(row["state"] == "current" for row in rows)
    if not old:
        here = f"nothing is outdated: {current} of {len(rows)} are known to be as new as their sources"
        console.note(here if rows else "nothing is here yet")


def _short(revision: str) -> str:
    return revision.removeprefix("sha256:")[:12]


def _agreed(count: int) -> bool:
    """Whether the user wants the pulls; nobody does where there is no terminal to ask at."""
    if sys.stdin is None or not sys.stdin.isatty():
        console.note("`--yes` brings them in")
        return False
    return click.confirm(f"bring {'it' if count == 1 else f'these {count}'} in?", err=True)
