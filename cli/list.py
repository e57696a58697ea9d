"""`lm list`: the models that are here."""

from __future__ import annotations

from typing import Any

import click

from cli import console
from cli.client import Client


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print all that is known of them as JSON.")
def command(as_json: bool) -> None:
    """List the models that are here, newest first."""
    rows = Client().ask("GET", "/api/tags")["models"]
    if as_json:
        console.as_json(rows)
    else:
        print_models(rows)


def print_models(rows: list[dict[str, Any]]) -> None:
    """Rows of `/api/tags` for people."""
    cells = [
        (row["name"], row["digest"][:12], console.size(row["size"]), console.ago(row["modified_at"])) for row in rows
    ]
    console.table(("NAME", "ID", "SIZE", "MODIFIED"), cells)
    for row in rows:
        if row.get("problem"):
            console.note(f"warning: {row['problem']}", "yellow")
    if not rows:
        console.note("nothing is here yet; `lm run demo` tries the model that comes with lm")
