"""`lm rm`: remove models."""

from __future__ import annotations

import click

from cli import console
from cli.client import Client
from cli.errors import Failure
from cli.naming import complete, reference


@click.command()
@click.argument("names", nargs=-1, required=True, shell_complete=complete, metavar="NAME...")
def command(names: tuple[str, ...]) -> int:
    """Remove models; each one that cannot be removed is named, and the others go."""
    client = Client()
    code = 0
    for name in names:
        try:
            gone = client.ask("DELETE", "/api/delete", {"model": reference(name)})
            console.note(f"removed `{gone.get('deleted', name)}`")
        except Failure as error:
            console.complain(str(error), error.hint)
            code = code or error.exit_code
    return code
