"""`lm jobs`: work that goes on or waits: pulls, and models that are improved."""

from __future__ import annotations

from typing import Any

import click

from cli import console
from cli.client import Client
from cli.describing import figure_text


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print all that is known of them as JSON.")
def command(as_json: bool) -> None:
    """Show pulls that are under way, and models that are improved, that wait for it, or that were tried."""
    found = Client().ask("GET", "/lm/jobs")
    if as_json:
        console.as_json(found)
        return
    rows = [(pull["source"], "pull", "running", _far(pull), pull.get("status", "")) for pull in found["pulls"]]
    rows += [(row["model"], "improve", row["state"], _far(row), _said(row)) for row in found["improvements"]]
    console.table(("MODEL", "JOB", "STATE", "DONE", ""), rows)
    if found["waits"]:
        console.note(f"nothing is improved for now: {found['waits']}")
    elif not rows:
        console.note("no work goes on")


def _far(row: dict[str, Any]) -> str:
    return f"{100 * row['completed'] // row['total']}%" if row.get("total") else ""


def _said(row: dict[str, Any]) -> str:
    """The reason; where both files were measured, both divergences."""
    if row["state"] == "better" and "after" in row:
        return f"KL divergence {figure_text(row['before'])} → {figure_text(row['after'])}"
    return str(row["sentence"])
