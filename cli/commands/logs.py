"""`lm logs`: the daemon's log, read from its file, whether the daemon runs or not."""

from __future__ import annotations

import os
import time
from collections import deque
from io import BufferedReader
from pathlib import Path

import click

from cli import console
from cli.client import settings
from cli.errors import Failure

LOOK_SECONDS = 0.2


@click.command()
@click.option(
    "-n", "lines", type=click.IntRange(min=0), default=50, show_default=True, help="How many of the last lines."
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is added, until Ctrl-C.")
def command(lines: int, follow: bool) -> None:
    """Show the end of the daemon's log."""
    path = settings().log_file
    try:
        file = path.open("rb")
    except OSError as error:
        raise Failure(f"there is no log at `{path}`: {error.strerror}", "a daemon that `lm` starts keeps one") from None
    with file:
        _print(b"".join(deque(file, lines)))
        if not follow:
            return
        while True:
            file = _next_file(path, file)
            _print(file.read())
            time.sleep(LOOK_SECONDS)


def _next_file(path: Path, file: BufferedReader) -> BufferedReader:
    """The file, or its successor of the same name after a rotation; the rest of the old one is printed first."""
    try:
        changed = path.stat().st_ino != os.fstat(file.fileno()).st_ino
        following = path.open("rb") if changed else file
    except FileNotFoundError:
        return file
    if following is not file:
        _print(file.read())
        file.close()
    return following


def _print(data: bytes) -> None:
    if data:
        console.out(data.decode("utf-8", "replace"), end="")
