"""`lm fit`: the memory that each level of a model would take here, the level that a pull would choose, and why."""

from __future__ import annotations

from typing import Any

import click

from cli import console
from cli.client import Client
from cli.completing import complete_levels, complete_sources
from cli.errors import Failure
from cli.naming import explaining, reference
from runtime.defaults import CACHE_TYPES, CONTEXT_RANGE, SEQUENCES_RANGE
from runtime.units import size_text


@click.command()
@click.argument("name", shell_complete=complete_sources)
@click.option(
    "--level", metavar="LEVEL", shell_complete=complete_levels, help="Judge this level instead of choosing one."
)
@click.option(
    "--ctx",
    "context",
    type=click.IntRange(*CONTEXT_RANGE),
    metavar="TOKENS",
    help="Context, shared by all conversations.",
)
@click.option("--parallel", type=click.IntRange(*SEQUENCES_RANGE), metavar="N", help="Conversations at once.")
@click.option(
    "--kv-type",
    type=click.Choice(CACHE_TYPES, case_sensitive=False),
    metavar="TYPE",
    help=f"Type of the cache: {', '.join(CACHE_TYPES[:-1])} or {CACHE_TYPES[-1]}.",
)
@click.option("--memory", metavar="SIZE", help="What models may use, such as 6GB, instead of what this machine allows.")
@click.option(
    "--min-tps",
    type=click.FloatRange(0, 1_000_000),
    metavar="N",
    help="Tokens per second below which a level is too slow.",
)
@click.option("--all", "all_levels", is_flag=True, help="Show every level there is.")
@click.option("--json", "as_json", is_flag=True, help="Print all that is known as JSON.")
def command(  # noqa: PLR0913  click gives each option by its name
    name: str,
    *,
    level: str | None,
    context: int | None,
    parallel: int | None,
    kv_type: str | None,
    memory: str | None,
    min_tps: float | None,
    all_levels: bool,
    as_json: bool,
) -> None:
    """Say which level of a model this machine can hold, before anything is downloaded.

    NAME is a model that is here, `demo`, `org/repo` on the hub, or a folder.
    """
    client = Client()
    client.note_settings()
    body = {
        "model": reference(name),
        "level": level,
        "context": context,
        "parallel": parallel,
        "kv_type": kv_type,
        "memory": memory,
        "min_tps": min_tps,
        **client.hub(),
    }
    if level is not None:
        reference(name, level)  # refuses two levels that differ
    refusal = None
    try:
        with (
            explaining(name),
            console.status("reading headers, and measuring this machine where that was not done yet"),
        ):
            advice = client.ask("POST", "/lm/advise", {key: value for key, value in body.items() if value is not None})
    except Failure as error:
        if "levels" not in error.body:
            raise
        refusal, advice = error, error.body
    if as_json:
        console.as_json(advice)
    else:
        print_advice(advice, all_levels)
    if refusal:
        raise refusal


def print_advice(advice: dict[str, Any], all_levels: bool) -> None:
    """An answer of `/lm/advise` for people: the table to stdout, notes on it to stderr."""
    shown = [row for row in advice["levels"] if all_levels or row["listed"] or row["chosen"]]
    heads = ["", "LEVEL", "BITS", "FILE", "MEMORY", "FITS", "TOKENS/S", "QUALITY*"]
    lines = [_cells(row) for row in shown]
    if any(row["cards"] for row in shown):
        heads.insert(5, "CARDS")
        lines = [(*line[:5], _cards(row), *line[5:]) for line, row in zip(lines, shown, strict=True)]
    console.table(tuple(heads), lines)
    console.note()
    if advice["unseen"]:
        console.note(f"only the file that is here was looked at: {advice['unseen']}", "yellow")
    if advice["level"]:
        console.note(advice["reason"])
    published = next((row["file"] for row in shown if row["chosen"] and row["file"]), "")
    if published:
        console.note(f"published as `{published}`; a pull takes it as it is")
    for row in advice["rejected"]:
        console.note(f"  {row['level']} {row['why']}")
    context = f"{advice['context']:,} tokens of context for {advice['sequences']} conversations"
    use = size_text(advice["memory"]["models_may_use"])
    console.note(f"memory: {context}, cache in {advice['kv_type']}; models may use {use}")
    if advice["context_reason"]:
        console.note(f"context: {advice['context_reason']}")
    console.note("tokens/s: of one answer at its beginning, and when the context is full")
    measured = any(row["quality"] == "measured" for row in shown)
    measured_here = "; KL: divergence from the original, measured here" if measured else ""
    console.note(f"* rise of perplexity, {advice['quality_source']}{measured_here}")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table."""
    fits = {"yes": "yes", "no": "no", "evict": "without " + ", ".join(row["evict"])}[row["fits"]]
    quality = "" if row["perplexity_increase"] is None else f"+{row['perplexity_increase']:g}"
    if row["quality"] == "measured":
        quality = f"KL {row['divergence']:.3g}"
    return (
        "→" if row["chosen"] else "",
        row["level"],
        f"{row['bits_per_weight']:.2f}",
        size_text(row["file_bytes"]),
        size_text(row["memory_bytes"]),
        fits,
        f"{_speed(row['tokens_per_second'])} … {_speed(row['tokens_per_second_full'])}",
        quality,
    )


def _cards(row: dict[str, Any]) -> str:
    """The bytes that each graphics card would hold, and its free bytes."""
    parts = ("weights_bytes", "cache_bytes", "compute_bytes")
    return ", ".join(
        f"{card['name']} {size_text(sum(card[name] for name in parts))} of {size_text(card['free_bytes'])}"
        for card in row["cards"]
    )


def _speed(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"
