"""`lm ps`: the models that are loaded."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

import click

from cli import console
from cli.client import Client
from cli.commands.list import begun
from cli.completing import complete_names
from cli.errors import UNREACHABLE, Failure
from runtime.defaults import CACHE_TYPE
from runtime.units import size_text

_NARROW = ("NAME", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL")
_FOREVER_SECONDS = 86400.0 * 365


@click.command()
@click.argument("prefix", default="", shell_complete=complete_names)
@click.option(
    "--wide", is_flag=True, help="Show the parts of the memory too: weights, cache, buffers, and what is held."
)
@click.option("--watch", is_flag=True, help="Show them anew every few seconds, until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How often `--watch` looks.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all that is known of them as JSON; watching, on one line.")
def command(prefix: str, wide: bool, watch: bool, interval: float, as_json: bool) -> None:
    """List the models that are loaded, with the memory they hold and their true context."""
    client, missing = Client(start=not watch), ""
    while True:
        try:
            rows = begun(client.ask("GET", "/api/ps")["models"], prefix)
        except Failure as error:
            if not watch or error.code != UNREACHABLE:
                raise
            if missing != str(error):
                console.clear()
                console.note(str(error))  # it may come back
            missing = str(error)
        else:
            missing = ""
            if watch and not as_json:
                console.clear()
            _print(sorted(rows, key=lambda row: row["expires_at"], reverse=True), wide, as_json, watch)
        if not watch:
            return
        time.sleep(interval)


def _print(rows: list[dict[str, Any]], wide: bool, as_json: bool, watch: bool) -> None:
    if not as_json:
        print_loaded(rows, wide)
    elif watch:
        console.out(json.dumps(rows, ensure_ascii=False))
    else:
        console.as_json(rows)


def print_loaded(rows: list[dict[str, Any]], wide: bool) -> None:
    """Rows of `/api/ps` for people; HOLDS is the memory beside the weights, measured and predicted."""
    columns = {
        "NAME": [row["name"] for row in rows],
        "ID": [row["digest"][:12] for row in rows],
        "SIZE": [size_text(row["size"]) for row in rows],
        "PROCESSOR": [_processor(row) for row in rows],
        "CONTEXT": [str(row["context_length"]) for row in rows],
        "KV TYPE": [row["kv_type"] for row in rows],
        **{part.upper(): [size_text(row[f"{part}_bytes"]) for row in rows] for part in ("weights", "cache", "compute")},
        "HOLDS": [
            f"{size_text(row['measured_anonymous_bytes'])} of {size_text(row['predicted_anonymous_bytes'])}"
            for row in rows
        ],
        "UNTIL": [_until(row) for row in rows],
    }
    plain = all(row["kv_type"] == CACHE_TYPE for row in rows)
    shown = [name for name in columns if wide or name in _NARROW or (name == "KV TYPE" and not plain)]
    console.table(shown, list(zip(*(columns[name] for name in shown), strict=True)))
    for row in rows:
        if row["context_reason"]:
            console.note(f"{row['name']}: {row['context_reason']}")
        if row["kv_type_reason"]:
            console.note(f"{row['name']}: {row['kv_type_reason']}")
        if row["prompts_in_steps"]:
            console.note(f"{row['name']}: long prompts slow running answers: {row['prompts_in_steps']}")
        if row["draft"]:
            console.note(f"{row['name']}: `{row['draft']}` drafts for it, and is in these sizes")
        if row["adapters"]:
            console.note(f"{row['name']}: adapters: {', '.join(row['adapters'])}")
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
