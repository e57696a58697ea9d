"""`lm push`: send a model to a registry."""

from __future__ import annotations

import json

import click

from cli import console
from cli.carrying import show
from cli.client import Client
from cli.completing import complete_names
from cli.naming import reference


@click.command()
@click.argument("name", shell_complete=complete_names)
@click.argument("target", required=False, metavar="[HOST/NAMESPACE/MODEL[:TAG]]")
@click.option(
    "--format",
    "form",
    type=click.Choice(["ollama", "modelpack"]),
    default="ollama",
    help="Ollama's form, which keeps every byte, or a CNCF ModelPack, with its making as annotations.",
)
@click.option("--json", "as_json", is_flag=True, help="Print progress as lines of JSON.")
def command(name: str, target: str | None, form: str, as_json: bool) -> None:
    """Send the model NAME to a registry; blobs that it has already are not sent.

    Without a target it goes where its name says. `lm login HOST` keeps a login; LM_REGISTRIES names registries of your
    own network. Ctrl-C pauses: the next `lm push` goes on.
    """
    client = Client()
    client.note_settings()
    body = {"model": reference(name), "to": reference(target) if target else "", "format": form}
    lines = client.stream("/api/push", body)
    if as_json:
        for line in lines:
            console.out(json.dumps(line, ensure_ascii=False))
        return
    last = show(lines)
    console.note(f"`{last['name']}` is there, sha256:{last['manifest_digest'].removeprefix('sha256:')[:12]}")
