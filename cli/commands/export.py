"""`lm export`: models in one file."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO

import click

from cli import console
from cli.carrying import Counter
from cli.client import Client
from cli.completing import complete_names
from cli.errors import Failure
from cli.naming import reference
from runtime.units import size_text

_STEP = 1 << 20


@click.command()
@click.argument("names", nargs=-1, required=True, shell_complete=complete_names, metavar="NAME...")
@click.option("-o", "--output", "target", required=True, metavar="FILE", help="The file to write, `-` for a pipe.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def command(names: tuple[str, ...], target: str, force: bool) -> None:
    """Write models into one file, a bundle: an OCI image layout in a tar, with parts that models share once.

    `lm import FILE` brings them in on another box, checked and byte for byte.
    """
    pipe = target == "-"
    if pipe and sys.stdout.isatty():
        raise Failure("a bundle does not go to a terminal", "name a file: `-o bundle.tar`", "usage")
    path = Path(target)
    if not pipe and path.exists() and not force:
        raise Failure(f"`{target}` is there already", "`--force` replaces it", "usage")
    client = Client()
    with client.open("POST", "/lm/export", {"models": [reference(name) for name in names]}) as response:
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
