"""`lm show`: the sizes, the origin and the capabilities of a model, or one part of its description."""

from __future__ import annotations

import click

from cli import console
from cli.client import Client
from cli.completing import complete_names
from cli.describing import part, print_details, print_model, tensor_types
from cli.errors import Failure
from cli.naming import explaining, reference


@click.command()
@click.argument("name", shell_complete=complete_names)
@click.option("--license", "parts", flag_value="license", multiple=True, help="Only the license.")
@click.option("--modelfile", "parts", flag_value="modelfile", multiple=True, help="Only the Modelfile.")
@click.option("--parameters", "parts", flag_value="parameters", multiple=True, help="Only the options of its own.")
@click.option("--system", "parts", flag_value="system", multiple=True, help="Only the system message.")
@click.option("--template", "parts", flag_value="template", multiple=True, help="Only the chat template.")
@click.option(
    "--tensor-types",
    "parts",
    flag_value="tensor-types",
    multiple=True,
    help="Only the types of its matrices, as a file for `llama-quantize --tensor-type-file`.",
)
@click.option("-v", "--verbose", is_flag=True, help="The entries of its file and its tensors too.")
@click.option("--json", "as_json", is_flag=True, help="Print all that is known of it as JSON.")
def command(name: str, parts: tuple[str, ...], verbose: bool, as_json: bool) -> None:
    """Describe a model: its sizes, its level and the reason for it, its capabilities."""
    if len(set(parts)) + as_json > 1:
        first, second = [*(f"--{each}" for each in dict.fromkeys(parts)), "--json"][:2]
        raise Failure(f"`{first}` and `{second}` exclude each other", "give one of them", "usage")
    with explaining(name):
        answer = Client().ask("POST", "/api/show", {"model": reference(name), "verbose": verbose})
    if as_json:
        console.as_json(answer)
    elif parts:
        text = tensor_types(answer) if parts[0] == "tensor-types" else part(answer, parts[0])
        console.out(text) if text else console.note(f"`{name}` says nothing about its {parts[0]}")
    else:
        print_model(answer)
        if verbose:
            print_details(answer)
