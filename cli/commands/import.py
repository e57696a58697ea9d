"""`lm import`: the models of a bundle."""

from __future__ import annotations

import json
import stat
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import click

from cli import console
from cli.carrying import Counter, show
from cli.client import Client
from cli.errors import Failure


@click.command()
@click.argument("source", metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="Print the models as JSON.")
def command(source: str, as_json: bool) -> None:
    """Bring the models of a bundle in, which `lm export` wrote; FILE may be `-` for a pipe.

    Each byte is checked by its digest. A damaged bundle brings nothing in.
    """
    with ExitStack() as stack:
        file = sys.stdin.buffer if source == "-" else _opened(stack, source)
        if file.isatty():
            raise Failure("a bundle does not come from a terminal", "name a file", "usage")
        status = Path(source).stat() if source != "-" else None
        size = status.st_size if status and stat.S_ISREG(status.st_mode) else None
        counted = Counted(file, stack.enter_context(Counter("reading", size)))
        last = show(Client().stream("/lm/import", counted), quiet=True)
    if as_json:
        console.out(json.dumps(last["models"], ensure_ascii=False))
    for model in last["models"] if not as_json else ():
        console.note(f"`{model['name']}` is here")


class Counted:
    """A file that is read, and a bar that shows how far."""

    def __init__(self, file: BinaryIO, counter: Counter) -> None:
        self._file, self._counter = file, counter

    def read(self, size: int) -> bytes:
        """The next bytes."""
        data = self._file.read(size)
        self._counter.add(len(data))
        return data


def _opened(stack: ExitStack, source: str) -> BinaryIO:
    try:
        return stack.enter_context(Path(source).open("rb"))
    except OSError as error:
        raise Failure(f"`{source}` cannot be read: {(error.strerror or '').lower()}", "", "usage") from None
