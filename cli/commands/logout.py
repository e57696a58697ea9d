"""`lm logout`: forget a login at a registry."""

from __future__ import annotations

import click

from cli import console
from cli.client import Client


@click.command()
@click.argument("registry", metavar="HOST")
def command(registry: str) -> None:
    """Forget the login at the registry HOST. Docker's config stays as it is."""
    answer = Client().ask("POST", "/lm/logout", {"registry": registry})
    console.note(f"the login at `{answer['registry']}` is forgotten" if answer["forgotten"] else "there was none")
