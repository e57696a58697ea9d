"""`lm quality`: how far a model's probabilities are from its original's, measured here, and kept with the model."""

from __future__ import annotations

import click

from cli import console
from cli.client import Client
from cli.completing import complete_names, complete_sources
from cli.describing import quality_rows
from cli.measuring import measure, text_of, text_option, windows_option
from cli.naming import reference


@click.command()
@click.argument("name", shell_complete=complete_names)
@click.option(
    "--against",
    metavar="SOURCE",
    shell_complete=complete_sources,
    help="Measure against this: a model that is here, a name on the hub, or a folder.",
)
@text_option
@windows_option
@click.option("--no-keep", is_flag=True, help="Print the figures, and keep no card with the model.")
@click.option("--json", "as_json", is_flag=True, help="Print the card as JSON.")
def command(
    name: str, *, against: str | None, text: str | None, windows: int | None, no_keep: bool, as_json: bool
) -> None:
    """Measure how far a model is from its original by the probabilities of the next token.

    Both read the same windows of text, one after the other. Without --against the original is the source that the model
    was made of, where it runs on this machine, else the best level of it that does. The figures are kept with the model
    as its quality card, which `lm show` prints. Ctrl-C stops the measurement; the same command goes on with it.
    """
    client = Client()
    body = {
        "model": reference(name),
        "against": reference(against) if against else "",
        "text": text_of(text),
        "keep": not no_keep,
        **({"windows": windows} if windows else {}),
        **client.hub(),
    }
    last = measure(client, body)
    if as_json:
        console.as_json(last["card"])
        return
    rows = quality_rows(last["card"])
    width = max(len(title) for title, _ in rows)
    console.out(last["model"])
    for title, value in rows:
        console.line(f"  {title:<{width}}  {value}", width + 4)
    if last["kept"]:
        console.note(f"kept with the model: `lm show {last['model']}`")
