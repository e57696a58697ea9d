"""`lm ps`: the models that are loaded."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from cli import console
from cli.client import Client
from runtime.units import size_text

_NARROW = ("NAME", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL")
_FOREVER_SECONDS = 86400.0 * 365


@click.command()
@click.option(
    "--wide", is_flag=True, help="Show the parts of the memory too: weights, cache, buffers, and what is held."
)
@click.option("--json", "as_json", is_flag=True, help="Print all that is known of them as JSON.")
def command(wide: bool, as_json: bool) -> None:
    """List the models that are loaded, with the memory they hold and their true context."""
    rows = Client().ask("GET", "/api/ps")["models"]
    if as_json:
        console.as_json(rows)
    else:
        print_loaded(rows, wide)


def print_loaded(rows: list[dict[str, Any]], wide: bool) -> None:
    """Rows of `/api/ps` for people; HOLDS is the memory beside the weights, measured and predicted."""
    columns = {
        "NAME": [row["name"] for row in rows],
        "ID": [row["digest"][:12] for row in rows],
        "SIZE": [size_text(row["size"]) for row in rows],
        "PROCESSOR": [_processor(row) for row in rows],
        "CONTEXT": [str(row["context_length"]) for row in rows],
        **{part.upper(): [size_text(row[f"{part}_bytes"]) for row in rows] for part in ("weights", "cache", "compute")},
        "HOLDS": [
            f"{size_text(row['measured_anonymous_bytes'])} of {size_text(row['predicted_anonymous_bytes'])}"
            for row in rows
        ],
        "UNTIL": [_until(row) for row in rows],
    }
    shown = [name for name in columns if wide or name in _NARROW]
    console.table(shown, list(zip(*(columns[name] for name in shown), strict=True)))
    for row in rows:
        if row["context_reason"]:
            console.note(f"{row['name']}: {row['context_reason']}")
        if row["prompts_in_steps"]:
            console.note(f"{row['name']}: long prompts slow running answers: {row['prompts_in_steps']}")
        if row["draft"]:
            console.note(f"{row['name']}: `{row['draft']}` drafts for it, and is in these sizes")
        if row["drafts"]:
            console.note(f"{row['name']}: drafts: {row['drafts']}")


def _processor(row: dict[str, Any]) -> str:
    """Where the model's memory is, in Ollama's words."""
    gpu = min(100, round(100 * row["size_vram"] / row["size"])) if row["size"] else 0
    return {0: "100% CPU", 100: "100% GPU"}.get(gpu, f"{100 - gpu}%/{gpu}% CPU/GPU")


def _until(row: dict[str, Any]) -> str:
    if row.get("active"):
        return "in use"
    left = (datetime.fromisoformat(row["expires_at"]) - datetime.now(UTC)).total_seconds()
    return "forever" if left > _FOREVER_SECONDS else f"{console.span(left)} from now"
