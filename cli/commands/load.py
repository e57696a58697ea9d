"""`lm load`: load models before anybody asks them; a model is brought in if need be, the daemon started."""

from __future__ import annotations

import click

from cli import console
from cli.asking import Asking, installed
from cli.client import Client
from cli.completing import complete_names
from cli.errors import Failure
from cli.naming import reference
from runtime.defaults import CACHE_TYPES
from runtime.units import size_text


@click.command()
@click.argument("names", nargs=-1, required=True, shell_complete=complete_names, metavar="NAME...")
@click.option("--ctx", type=click.IntRange(min=1), metavar="TOKENS", help="How much the model is to keep in view.")
@click.option(
    "--kv-type", type=click.Choice(CACHE_TYPES, case_sensitive=False), metavar="TYPE", help="Type of its KV cache."
)
@click.option("--keep-alive", "--keepalive", metavar="TIME", help="How long it stays: `10m`, `1h30m`, `-1` for ever.")
def command(names: tuple[str, ...], ctx: int | None, kv_type: str | None, keep_alive: str | None) -> int:
    """Load models into memory, so that their first answers do not wait for that."""
    options = {key: value for key, value in (("num_ctx", ctx), ("kv_type", kv_type)) if value is not None}
    client = Client()
    client.note_settings()
    code = 0
    for name in names:
        try:
            model = installed(client, reference(name), name)
            asking = Asking(client, model, options, keep_alive=keep_alive)
            with console.status(f"loading {model}"):
                told = client.ask("POST", "/api/generate", asking.body(prompt="", stream=False))
            asking.note_context(told)
            _tell(client, model)
        except Failure as error:
            console.complain(str(error), error.hint)
            code = code or error.exit_code
    return code


def _tell(client: Client, model: str) -> None:
    """Say what the model takes now."""
    shown = client.ask("POST", "/api/show", {"model": model})
    rows = client.ask("GET", "/api/ps")["models"]
    row = next((row for row in rows if row["digest"] == shown["digest"]), None)
    size = f": {size_text(row['size'])}, {row['context_length']:,} tokens of context in {row['kv_type']}" if row else ""
    console.note(f"`{row['name'] if row else model}` is loaded{size}")
