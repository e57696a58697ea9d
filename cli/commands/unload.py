"""`lm unload`: free the memory of models; pulls go on, and nothing is started."""

from __future__ import annotations

import click

from cli import console
from cli.client import Client
from cli.completing import complete_names
from cli.errors import Failure
from cli.naming import explaining, reference


@click.command()
@click.argument("names", nargs=-1, shell_complete=complete_names, metavar="NAME...")
@click.option("--all", "everything", is_flag=True, help="Unload every model.")
def command(names: tuple[str, ...], everything: bool) -> int:
    """Unload models, after the answers that are under way. `lm stop` pauses their pulls too."""
    if bool(names) == everything:
        raise Failure("say either models or `--all`", "`lm ps` shows what is loaded", "usage")
    client = Client(start=False)
    loaded = {row["digest"]: row["name"] for row in client.ask("GET", "/api/ps")["models"]}
    code = 0
    for name in list(loaded.values()) if everything else names:
        try:
            with explaining(name):
                model = name if everything else reference(name)
                digest = client.ask("POST", "/api/show", {"model": model})["digest"]
            if digest not in loaded:
                console.note(f"`{name}` was not loaded")
                continue
            client.ask("POST", "/api/generate", {"model": model, "keep_alive": 0, "stream": False})
            console.note(f"unloaded `{loaded[digest]}`")
        except Failure as error:
            console.complain(str(error), error.hint)
            code = code or error.exit_code
    if everything and not loaded:
        console.note("nothing is loaded")
    return code
