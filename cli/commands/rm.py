"""`lm rm`: remove models."""

from __future__ import annotations

import click

from cli import console
from cli.client import Client
from cli.completing import complete_names
from cli.errors import Failure
from cli.naming import reference


@click.command()
@click.argument("names", nargs=-1, required=True, shell_complete=complete_names, metavar="NAME...")
@click.option("--all", "everything", is_flag=True, help="Remove every level of these models.")
@click.option("--partial", is_flag=True, help="Remove what pulls have written, and leave models as they are.")
def command(names: tuple[str, ...], everything: bool, partial: bool) -> int:
    """Remove models, and their pulls; each one that cannot be removed is named, and the others go.

    A model that is here at several levels is removed by the name of a level, or whole with `--all`.
    """
    client = Client()
    code = 0
    for name in names:
        try:
            gone = client.ask(
                "DELETE", "/api/delete", {"model": reference(name), "all": everything, "partial": partial}
            )
            for removed in gone["all"]:
                console.note(f"removed `{removed}`")
            for note in gone.get("notes", ()):
                console.note(f"note: {note}", "yellow")
        except Failure as error:
            console.complain(str(error), error.hint)
            code = code or error.exit_code
    return code
