"""`lm search`: models of the hub by words."""

from __future__ import annotations

from typing import Any

import click

from cli import console
from cli.client import Client


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="WORDS...")
@click.option(
    "--limit", type=click.IntRange(1, 100), default=20, show_default=True, metavar="N", help="How many at most."
)
@click.option("--json", "as_json", is_flag=True, help="Print all that is known of them as JSON.")
def command(words: tuple[str, ...], limit: int, as_json: bool) -> None:
    """Search the hub for models whose names have these words, most downloaded first."""
    client = Client()
    with console.status("searching"):
        body = {"query": " ".join(words), "limit": limit, **client.hub()}
        rows = client.ask("POST", "/lm/search", body)["models"]
    if as_json:
        console.as_json(rows)
    else:
        print_found(rows)


def print_found(rows: list[dict[str, Any]]) -> None:
    """Rows of `/lm/search` for people."""
    cells = [
        (
            row["name"],
            _count(row["parameters"]),
            _count(row["downloads"]),
            {None: "", "": "no"}.get(row["fits"], row["fits"]),
            ", ".join(word for word in ("gguf" if row["gguf"] else "", "gated" if row["gated"] else "") if word),
        )
        for row in rows
    ]
    console.table(("NAME", "WEIGHTS", "DOWNLOADS", "FITS", ""), cells)
    if rows:
        console.note("FITS: the best type whose weights this machine can hold; `lm fit NAME` weighs all else")
    else:
        console.note("nothing has these words in its name; fewer words find more")


def _count(number: int) -> str:
    """A number with three digits: `1.54B`, `494M`; "" for 0."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}" if number < 999.5 * size else f"{number / size:.0f}{unit}"
    return str(number) if number else ""
