"""Signatures made and checked by a process of the user's, which reads the files of keys."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from cli.errors import Failure


def ask_signer(task: dict[str, Any]) -> dict[str, Any]:
    """The answer of `python -P -m server.signing` to a task. Raises Failure."""
    command = [sys.executable, "-P", "-m", "server.signing"]
    done = subprocess.run(command, input=json.dumps(task).encode(), capture_output=True, check=False)
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        errors = done.stderr.decode(errors="replace").strip().splitlines()
        raise Failure(f"the check ended: {errors[-1] if errors else 'it printed nothing'}", "try again") from None
    if "error" in answer:
        raise Failure.of(answer)
    return answer
