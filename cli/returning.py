"""A model as a folder in Hugging Face's layout, which a process of its own writes, for `lm export`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from cli import console
from cli.carrying import Counter
from cli.errors import Failure
from runtime.units import size_text


def give_back(name: str, target: Path, dtype: str, place: str, force: bool) -> str:
    """Write the folder; a sentence on what it holds. Raises Failure."""
    command = [sys.executable, "-P", "-m", "server.returning", name, str(target), dtype, place, "1" if force else ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            last = _follow(process)
        except KeyboardInterrupt:
            # The terminal told it too; it takes away what it has written.
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
        assert process.stderr
        errors = process.stderr.read().decode(errors="replace").strip().splitlines()
    if process.returncode == 0 and "text" in last:
        return f"`{target}` has {last['files']} files, {size_text(last['size'])}: {last['text']}"
    if "error" not in last:
        raise Failure(f"the export failed: {errors[-1] if errors else 'it ended without a word'}")
    raise Failure(last["error"], last["hint"], last["code"])


def _follow(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Show how much is written; the last line that the process says."""
    assert process.stdout
    with console.status("reading the model"):
        line = process.stdout.readline()
    last, done = _said(line), 0
    with Counter("writing", last.get("total")) as counter:
        while line:
            last = _said(line)
            counter.add(last.get("completed", done) - done)
            done = last.get("completed", done)
            line = process.stdout.readline()
    return last


def _said(line: bytes) -> dict[str, Any]:
    """A line of the process, empty where it broke off."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
