"""`lm export`: models in one file, or a model as a folder in Hugging Face's layout."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO

import click

from cli import console
from cli.auditing import auditing
from cli.carrying import Counter
from cli.client import Client
from cli.completing import complete_names
from cli.errors import Failure
from cli.naming import reference
from cli.returning import give_back
from runtime.units import size_text
from server.config import Config

_STEP = 1 << 20


@click.command()
@click.argument("names", nargs=-1, required=True, shell_complete=complete_names, metavar="NAME...")
@click.option("-o", "--output", "target", required=True, metavar="PATH", help="What to write; `-` pipes a bundle.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["bundle", "files", "safetensors"]),
    default="bundle",
    show_default=True,
    help="A file for `lm import`, a tar of files by name, or a folder for other programs.",
)
@click.option("--type", "dtype", type=click.Choice(["BF16", "F16", "F32"]), help="Of weights in safetensors.")
@click.option("--from", "place", metavar="SOURCE", help="Where config.json and the tokenizer are.")
@click.option("--force", is_flag=True, help="Replace what is there.")
def command(names: tuple[str, ...], target: str, form: str, dtype: str | None, place: str | None, force: bool) -> None:
    """Write models into one file, a bundle: an OCI image layout in a tar, with parts that models share once.

    `lm import FILE` brings them in on another box, checked and byte for byte.

    With `--format files` it is a tar of one model's `model.gguf`, `params.json` and so on, and `model.sig`: unpacked, a
    folder that `model_signing` signs and verifies.

    With `--format safetensors` the weights of one model go back into the layout and the names of its source: a new
    folder that transformers and vLLM load. Quantized weights become the numbers that they stand for, in the type of the
    source unless `--type` says another. Settings and tokenizer are read from where the model came from, or `--from`
    another folder or repository.
    """
    if form == "safetensors":
        _give_back(names, target, dtype or "", place, force)
    elif dtype or place:
        raise Failure("a bundle has its models as they are", "`--format safetensors` takes this option", "usage")
    else:
        _bundle(names, target, form == "files", force)


def _give_back(names: tuple[str, ...], target: str, dtype: str, place: str | None, force: bool) -> None:
    if len(names) > 1 or target == "-":
        raise Failure("a folder holds one model, and goes to no pipe", "name one model and a folder", "usage")
    path = Path(target)
    config = Config.load()
    with auditing(config, "export") as audit:
        said = give_back(reference(names[0]), path, dtype, reference(place) if place else "", force)
        audit(names[0], {"format": "safetensors"})
    console.note(said)


def _bundle(names: tuple[str, ...], target: str, files: bool, force: bool) -> None:
    if files and len(names) > 1:
        raise Failure("`--format files` is for one model", "name one", "usage")
    pipe = target == "-"
    if pipe and sys.stdout.isatty():
        raise Failure("a bundle does not go to a terminal", "name a file: `-o bundle.tar`", "usage")
    path = Path(target)
    if not pipe and path.exists() and not force:
        raise Failure(f"`{target}` is there already", "`--force` replaces it", "usage")
    client, body = Client(), {"models": [reference(name) for name in names], "files": files}
    with client.open("POST", "/lm/export", body) as response:
        size = int(response.headers["Content-Length"])
        if pipe:
            _copy(response, sys.stdout.buffer, size)
            return
        partial = path.with_name(f".{path.name}.part")
        try:
            with partial.open("wb") as file:
                _copy(response, file, size)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
    console.note(f"`{target}` holds {len(names)} {'model' if len(names) == 1 else 'models'}, {size_text(size)}")


def _copy(response: HTTPResponse, file: BinaryIO, size: int) -> None:
    """Copy the whole answer. Raises Failure where it ends early."""
    done = 0
    with Counter("writing", size) as counter:
        while done < size:
            try:
                data = response.read(min(_STEP, size - done))
            except (OSError, HTTPException):
                data = b""
            if not data:
                raise Failure("the daemon ended before the bundle was whole", "`lm logs` may say why")
            file.write(data)
            done += len(data)
            counter.add(len(data))
    file.flush()
