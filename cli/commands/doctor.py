"""`lm doctor`: a check of this machine and this installation, whether the daemon runs or not."""

from __future__ import annotations

import json
import subprocess
import sys

import click

from cli import console
from cli.errors import Failure

_MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(as_json: bool) -> int:
    """Check hardware, llama.cpp, memory, disk and the daemon; each finding with what to do about it.

    The exit code is 1 where something keeps lm from working.
    """
    with console.status("looking around"):
        done = subprocess.run([sys.executable, "-P", "-m", "server.doctor"], capture_output=True, check=False)
    try:
        findings = json.loads(done.stdout)
    except ValueError:
        errors = done.stderr.decode(errors="replace").strip().splitlines()
        raise Failure(
            f"the installation is broken: {errors[-1] if errors else 'it printed nothing'}", "install lm again"
        ) from None
    if as_json:
        console.as_json(findings)
        return done.returncode
    width = max(len(finding["check"]) for finding in findings)
    for finding in findings:
        console.line(f"{_MARKS[finding['state']]}  {finding['check']:<{width}}  {finding['found']}", width + 8)
        if finding["hint"]:
            console.out(f"{'':<{width + 6}}  {finding['hint']}")
    return done.returncode
