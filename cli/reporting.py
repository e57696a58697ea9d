"""Reports that a process of its own makes, for `lm report` and `lm bom`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from cli import console
from cli.errors import Failure


def made(*arguments: str) -> str:
    """The text that `python -P -m server.report` prints. Raises Failure."""
    command = [sys.executable, "-P", "-m", "server.report", *arguments]
    with console.status("reading the models"):
        done = subprocess.run(command, capture_output=True, check=False)
    text = done.stdout.decode("utf-8", "replace")
    if done.returncode == 0:
        return text
    try:
        failed = json.loads(text)
    except ValueError:
        errors = done.stderr.decode(errors="replace").strip().splitlines()
        raise Failure(f"the report failed: {errors[-1] if errors else 'it printed nothing'}") from None
    raise Failure(failed["error"], failed["hint"], failed["code"])


def put(text: str, output: Path | None) -> None:
    """Print a text, or write it into a new file. Raises Failure."""
    if output is None:
        console.out(text, end="")
        return
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise Failure(f"`{output}` cannot be written: {error.strerror}", "name a new file") from None
    console.note(f"written to `{output}`")
