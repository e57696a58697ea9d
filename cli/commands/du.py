"""`lm du`: what the models take of the disk."""

from __future__ import annotations

import click

from cli import console
from cli.client import Client
from runtime.units import size_text


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print bytes as JSON.")
def command(as_json: bool) -> None:
    """Show the bytes of the disk that models take: in all, and alone, which `lm rm` would free."""
    found = Client().ask("GET", "/lm/du")
    if as_json:
        console.as_json(found)
        return
    cells = [(row["name"], size_text(row["size"]), size_text(row["alone"])) for row in found["models"]]
    console.table(("NAME", "SIZE", "ALONE"), cells)
    if "blobs" in found:
        parts = [f"{size_text(found['blobs'])} in models, shared parts counted once"]
        if found["elsewhere"]:
            parts += [f"{size_text(found['elsewhere'])} that other programs keep"]
        older = found.get("older", 0)
        parts += [f"{size_text(older)} that improved models can go back to (`lm rollback`)"] if older else []
        parts += [f"{size_text(found['partials'])} in unfinished pulls"] if found["partials"] else []
        parts += [f"{size_text(found['unlisted'])} that no model lists (`lm prune`)"] if found["unlisted"] else []
        console.note(f"{', '.join(parts)}; {size_text(found['free'])} free")
