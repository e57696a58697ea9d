"""`lm prune`: remove what nothing needs."""

from __future__ import annotations

import sys

import click

from cli import console
from cli.client import Client
from cli.errors import Failure
from runtime.units import size_text


@click.command()
@click.option("--paused", is_flag=True, help="Remove paused pulls, too.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only show what would go.")
@click.option("--json", "as_json", is_flag=True, help="Print what goes as JSON; removes only with --yes.")
def command(paused: bool, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Remove blobs that no model lists and pulls that failed for good, after showing them and asking.

    Models stay: `lm rm` removes those. A blob that a loaded model or a push needs stays as well.
    """
    client = Client()
    body = {"paused": paused, "dry_run": True}
    found = client.ask("POST", "/lm/prune", body)
    if not as_json:
        for row in found["needless"]:
            name = row["name"][:19] if row["kind"] == "blob" else row["name"]
            console.out(f"{name}  {size_text(row['bytes'])}  {row['reason']}")
    if found["needless"] and not dry_run and (yes or not as_json):
        if not yes:
            _ask(found["bytes"])
        found = client.ask("POST", "/lm/prune", body | {"dry_run": False})
    if as_json:
        console.as_json(found)
    elif not found["needless"]:
        console.note("nothing is needless here")
    else:
        console.note(f"{size_text(found['bytes'])} {'are free' if found['removed'] else 'would be free'}")


def _ask(freed: int) -> None:
    """Ask whether to go on. Raises Failure where nobody can be asked, click.Abort for a no."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise Failure("there is no terminal to ask on", "`lm prune --yes` removes without asking", "usage")
    click.confirm(f"Remove these, and free {size_text(freed)}?", abort=True, err=True)
