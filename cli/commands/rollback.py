"""`lm rollback`: the file that a model had before it was improved."""

from __future__ import annotations

import click

from cli import console
from cli.client import Client
from cli.completing import complete_names
from cli.naming import explaining, reference


@click.command()
@click.argument("name", shell_complete=complete_names)
def command(name: str) -> None:
    """Go back to the file that a model had before it was improved; it is not improved again by itself.

    The older file is kept for 14 days, unless a new file needs its room.
    """
    with explaining(name):
        answer = Client().ask("POST", "/lm/rollback", {"model": reference(name)})
    console.note(f"`{answer['model']}` is as it was before it was improved")
