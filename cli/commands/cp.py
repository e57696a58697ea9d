"""`lm cp`: give a model a further name."""

from __future__ import annotations

import click

from cli import console
from cli.client import Client
from cli.completing import complete_names
from cli.naming import reference


@click.command()
@click.argument("source", shell_complete=complete_names)
@click.argument("destination")
def command(source: str, destination: str) -> None:
    """Give the model SOURCE the further name DESTINATION; its files are shared, and nothing is copied."""
    Client().ask("POST", "/api/copy", {"source": reference(source), "destination": destination})
    console.note(f"`{destination}` is `{source}`")
