"""`lm sync`: bring this box to a list of models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cli import console
from cli.carrying import show
from cli.client import Client
from cli.errors import Failure
from cli.naming import reference
from cli.watching import repeat


@click.command()
@click.argument("source", metavar="LIST|HOST/NAMESPACE/LIST|lm://BOX")
@click.option("--from", "near", multiple=True, metavar="lm://BOX", help="A neighbour that is asked first.")
@click.option("--prune", is_flag=True, help="Remove what an earlier sync of this list brought and is no longer on it.")
@click.option("--force", is_flag=True, help="Prune also by an empty list, or more than half of what it brought.")
@click.option("--dry-run", is_flag=True, help="Only show what would come and go.")
@click.option("--watch", type=click.FloatRange(1, 86400), metavar="SECONDS", help="Sync again and again.")
@click.option("--publish", metavar="HOST/NAMESPACE/LIST", help="Keep the list at a registry instead of syncing.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(  # noqa: PLR0913  click gives each option by its name
    source: str,
    near: tuple[str, ...],
    prune: bool,
    force: bool,
    dry_run: bool,
    watch: float | None,
    publish: str | None,
    as_json: bool,
) -> int:
    """Bring the models of a list in; a newer model replaces the older one.

    LIST is a file with one name on a line, as `lm pull` takes it, or `NAME@sha256:…` to pin it; `#` begins a comment.
    It may lie at a registry, too. `lm://BOX` stands for all that another lm has. Models that are not on the list stay.
    The exit code is 1 where something on the list is not here at the end.
    """
    client, is_file = Client(), not source.startswith("lm://") and Path(source).is_file()
    if publish is not None:
        if not is_file:
            raise Failure(f"there is no file `{source}`", "name the file of the list", "usage")
        text = _place(source, is_file)["list"]
        last = show(client.stream("/lm/publish", {"list": text, "to": reference(publish)}), quiet=as_json)
        console.note(f"the list is kept as `{last['name']}`")
        return 0
    wish = {"near": list(near), "prune": prune, "force": force, "dry_run": dry_run}

    shown: list[Any] = []

    def once() -> int:
        return _once(client, _place(source, is_file) | wish, as_json, shown)

    return once() if watch is None else repeat(once, watch)


def _place(source: str, is_file: bool) -> dict[str, Any]:
    """The source as the daemon knows it, with the text of a file as it is now. Raises Failure."""
    if not is_file:
        return {"source": source if source.startswith("lm://") else reference(source)}
    path = Path(source)
    try:
        return {"source": str(path.resolve()), "list": path.read_text()}
    except (OSError, UnicodeDecodeError):
        raise Failure(f"`{source}` cannot be read as text", "a list has one name on a line", "usage") from None


def _once(client: Client, body: dict[str, Any], as_json: bool, shown: list[Any]) -> int:
    """One sync; its exit code. A table that was `shown` last is not shown again. Raises Failure."""
    last = show(client.stream("/lm/sync", body), quiet=as_json)
    report = {key: value for key, value in last.items() if key not in ("status", "phase")}
    if as_json:
        console.out(json.dumps(report, ensure_ascii=False))
        return 0 if report["complete"] else 1
    cells = [(row["name"], row["state"], row.get("error", "")) for row in report["models"]]
    if shown != [cells]:
        console.table(("NAME", "STATE", ""), cells)
    shown[:] = [cells]
    for name in report["removed"]:
        console.note(f"{'would remove' if report['dry_run'] else 'removed'} `{name}`")
    for row in report["kept"]:
        console.note(f"`{row['name']}` stays: {row['reason']}")
    return 0 if report["complete"] else 1
