"""`lm show`: the sizes, the origin and the capabilities of a model."""

from __future__ import annotations

import click

from cli import console
from cli.client import Client
from cli.completing import complete_names
from cli.describing import print_model
from cli.naming import explaining, reference


@click.command()
@click.argument("name", shell_complete=complete_names)
@click.option("--json", "as_json", is_flag=True, help="Print all that is known of it as JSON.")
def command(name: str, as_json: bool) -> None:
    """Describe a model: its sizes, its level and the reason for it, its capabilities."""
    with explaining(name):
        answer = Client().ask("POST", "/api/show", {"model": reference(name)})
    if as_json:
        console.as_json(answer)
    else:
        print_model(answer)
