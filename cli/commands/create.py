"""`lm create`: make a model of another one, of a GGUF file or of a folder, by a Modelfile."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

import click

from cli import console
from cli.client import Client
from cli.completing import complete_levels
from cli.creating import body_of, read_modelfile
from cli.errors import Failure
from cli.pulling import show_lines


@click.command()
@click.argument("name")
@click.option("-f", "--file", default="Modelfile", help="The Modelfile; `-` reads standard input.", metavar="FILE")
@click.option(
    "-q",
    "--quantize",
    "--level",
    metavar="LEVEL",
    shell_complete=complete_levels,
    help="The level to make of whole weights, such as Q4_K_M.",
)
@click.option(
    "--draft-quantize", metavar="LEVEL", shell_complete=complete_levels, help="The same for the files of DRAFT."
)
@click.option("--json", "as_json", is_flag=True, help="Print progress as lines of JSON.")
def command(name: str, file: str, quantize: str | None, draft_quantize: str | None, as_json: bool) -> None:
    """Make the model NAME of a Modelfile: FROM a model, a GGUF file or a folder of weights.

    A model that is made of another shares its weights. PARAMETER, SYSTEM, TEMPLATE, MESSAGE, LICENSE, ADAPTER and
    DRAFT are its own.
    """
    found, folder = read_modelfile(file)
    client = Client()
    body: dict[str, Any] = {"model": name, **body_of(client, found, folder)}
    body |= {"quantize": quantize} if quantize else {}
    body |= {"draft_quantize": draft_quantize} if draft_quantize else {}
    with closing(client.stream("/api/create", body)) as lines:
        if not as_json:
            console.note(f"`{show_lines(lines)['name']}` is here")
            return
        try:
            for line in lines:
                console.out(json.dumps(line, ensure_ascii=False))
        except Failure as error:
            console.out(json.dumps({"status": "error", "error": str(error), "hint": error.hint, "code": error.code}))
            raise
