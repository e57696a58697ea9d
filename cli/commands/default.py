"""`lm default`: which level the bare name of a model means."""

from __future__ import annotations

import click

from cli import console
from cli.client import Client
from cli.completing import complete_names
from cli.naming import explaining, reference


@click.command()
@click.argument("name", shell_complete=complete_names)
@click.option("--json", "as_json", is_flag=True, help="Print what it means as JSON.")
def command(name: str, as_json: bool) -> None:
    """Let the bare name of a model mean one of its levels: `lm default tale:Q5_K_M`; `tale:auto` ends that.

    Without a level, say what the name means and why. `lm list` marks it where several levels are here.
    """
    with explaining(name):
        answer = Client().ask("POST", "/lm/default", {"model": reference(name)})
    if as_json:
        return console.as_json(answer)
    return console.note(f"`{answer['model']}` means `{answer['default']}`: {answer['reason']}")
