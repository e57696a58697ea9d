"""`lm list`: the models that are here, or the pulls that are not done."""

from __future__ import annotations

import shlex
from typing import Any

import click

from cli import console
from cli.client import Client
from cli.completing import complete_names
from cli.describing import figure_text
from runtime.units import size_text


@click.command()
@click.argument("prefix", default="", shell_complete=complete_names)
@click.option("--partial", is_flag=True, help="List the pulls that are under way or paused instead.")
@click.option("--found", is_flag=True, help="List the models of other programs on this machine instead.")
@click.option("--quality", is_flag=True, help="Show how far each model is from its original, where that was measured.")
@click.option("--json", "as_json", is_flag=True, help="Print all that is known of them as JSON.")
def command(prefix: str, *, partial: bool, found: bool, quality: bool, as_json: bool) -> None:
    """List the models that are here, newest first; with PREFIX only models whose names begin so."""
    client = Client()
    if found:
        rows = begun(client.ask("GET", "/lm/found")["models"], prefix)
        console.as_json(rows) if as_json else print_found(rows)
        return
    answer = client.ask("GET", "/lm/partials" if partial else "/api/tags")
    rows = answer["partials" if partial else "models"]
    rows = begun([row for row in rows if "alias" not in row], prefix)
    if as_json:
        console.as_json(rows)
    elif partial:
        print_partials(rows)
    else:
        print_models(rows, prefix, quality=quality)
    for problem in answer.get("problems", ()):
        console.note(f"warning: {problem}", "yellow")


def print_found(rows: list[dict[str, Any]]) -> None:
    """Rows of `/lm/found` for people."""
    cells = [(row["title"], size_text(row["size"]), row["program"], row["name"]) for row in rows]
    console.table(("MODEL", "SIZE", "PROGRAM", "NAME"), cells)
    if rows:
        console.note(
            "`lm pull NAME` takes one over: shared with its program where the disk allows, copied with `--copy`"
        )
    else:
        console.note("no other program has models in the usual places; OLLAMA_MODELS and HF_HOME name others")


def print_partials(rows: list[dict[str, Any]]) -> None:
    """Rows of `/lm/partials` for people."""
    cells = [
        (
            row["name"],
            f"{size_text(row['completed'])} of {size_text(row['total'])}",
            f"{100 * row['completed'] // (row['total'] or 1)}%",
            "under way" if row["active"] else "failed" if row["failed"] else "paused",
            console.ago(row["modified_at"]),
        )
        for row in rows
    ]
    console.table(("NAME", "WRITTEN", "DONE", "STATE", "MODIFIED"), cells)
    for row in rows:
        if row["failed"]:
            console.note(f"{row['name']}: {row['failed']}", "yellow")
        if not row["active"]:
            console.note(f"`lm pull {shlex.quote(row['source'])}` goes on, `lm rm --partial {row['name']}` removes it")


def begun(rows: list[dict[str, Any]], prefix: str) -> list[dict[str, Any]]:
    """The rows whose names begin with a text, in upper case or lower."""
    return [row for row in rows if row["name"].lower().startswith(prefix.lower())]


def print_models(rows: list[dict[str, Any]], prefix: str = "", *, quality: bool = False) -> None:
    """Rows of `/api/tags` for people; `prefix` is what their names had to begin with."""
    columns = {
        "NAME": [row["name"] for row in rows],
        "ID": [row["digest"][:12] for row in rows],
        "SIZE": [size_text(row["size"]) for row in rows],
        "MODIFIED": [console.ago(row["modified_at"]) for row in rows],
    }
    some = {
        "DEFAULT": ["yes" if row.get("default") else "" for row in rows],
        "ADAPTER FOR": [row.get("base", "") for row in rows],
    }
    if quality:
        cards = [row.get("quality") or {} for row in rows]
        columns["KL DIVERGENCE"] = [figure_text(card["mean"]) if card else "" for card in cards]
        columns["SAME TOKEN"] = [figure_text(card["top1"], percent=True) if card else "" for card in cards]
        columns["AGAINST"] = [card["reference"]["level"] if card else "" for card in cards]
    columns |= {head: cells for head, cells in some.items() if any(cells)}
    console.table(list(columns), list(zip(*columns.values(), strict=True)))
    if quality and not all(row.get("quality") for row in rows):
        console.note("`lm quality NAME` measures a model")
    for row in rows:
        if older := row.get("older"):
            size = size_text(older["size"])
            console.note(f"`lm rollback {row['name']}` goes back to its older file, which takes {size} more")
        if row.get("problem"):
            console.note(f"warning: {row['problem']}", "yellow")
    if not rows and prefix:
        console.note(f"no name here begins with `{prefix}`")
    elif not rows:
        console.note("nothing is here yet; `lm run demo` tries the model that comes with lm")
