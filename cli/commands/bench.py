"""`lm bench`: how fast a model reads prompts and writes answers here, at several sizes."""

from __future__ import annotations

from typing import Any

import click

from cli import console
from cli.asking import installed
from cli.benching import Bench, BenchTrial
from cli.client import Client
from cli.completing import complete_names
from cli.naming import reference
from runtime.defaults import CACHE_TYPES


class Counts(click.ParamType):  # type: ignore[type-arg]
    """Whole numbers, separated by commas."""

    name = "N,…"

    def __init__(self, least: int) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The numbers."""
        try:
            numbers = tuple(int(part) for part in value.split(",") if part.strip())
        except ValueError:
            numbers = (-1,)
        if not all(self._least <= number <= 1 << 24 for number in numbers):
            self.fail(f"{value[:60]!r} is not numbers of tokens, separated by commas", param, ctx)
        return tuple(dict.fromkeys(numbers))


@click.command()
@click.argument("name", shell_complete=complete_names)
@click.option("--prompt", "prompts", type=Counts(1), default="128,512", show_default=True, help="Tokens to read.")
@click.option("--gen", "answers", type=Counts(1), default="32,128", show_default=True, help="Tokens to write.")
@click.option(
    "--depth", "depths", type=Counts(0), default="0", show_default=True, help="Tokens that stand before them."
)
@click.option(
    "--repeat", type=click.IntRange(1, 100), default=3, show_default=True, metavar="N", help="Runs of each size."
)
@click.option("--ctx", type=click.IntRange(min=1), metavar="TOKENS", help="The context to load it with.")
@click.option(
    "--kv-type", type=click.Choice(CACHE_TYPES, case_sensitive=False), metavar="TYPE", help="Type of the KV cache."
)
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
def command(
    name: str,
    *,
    prompts: tuple[int, ...],
    answers: tuple[int, ...],
    depths: tuple[int, ...],
    repeat: int,
    as_json: bool,
    **load: Any,
) -> None:
    """Measure how many tokens a second a model reads (pp) and writes (tg), one request after the other.

    It asks the daemon as everybody does, and unloads nothing: the requests of others go on, and slow the figures down.
    """
    client = Client()
    client.note_settings()
    bench = Bench(client, installed(client, reference(name), name), load)
    trials = [
        BenchTrial(*size, depth) for depth in depths for size in [(p, 0) for p in prompts] + [(0, a) for a in answers]
    ]
    if not as_json:
        console.note(bench.setting)
        console.out(f"{'TEST':<16}{'TOKENS/S':>10}{'+/-':>8}")
    rows = []
    for trial in trials:
        row = bench.measure(trial, repeat)
        rows.append(row)
        if not as_json and row["rate"] is not None:
            console.out(f"{row['test']:<16}{row['rate']:>10.1f}{row['deviation']:>8.1f}")
        elif row["rate"] is None:
            console.note(f"{row['test']} is left out: {row['reason']}", "yellow")
    if as_json:
        console.as_json(bench.facts | {"tests": rows, "busy": bench.busy})
    if bench.busy:
        console.note(f"others asked this model before {bench.busy} of the runs: without them it is faster", "yellow")
