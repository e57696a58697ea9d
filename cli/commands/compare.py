"""`lm compare`: two files of one model side by side, by their quality cards or by a measurement of both."""

from __future__ import annotations

from typing import Any

import click

from cli import console
from cli.client import Client
from cli.completing import complete_names, complete_sources
from cli.describing import DIVERGENCES, figure_text
from cli.errors import Failure
from cli.measuring import measure, text_of, text_option, windows_option
from cli.naming import reference
from runtime.units import size_text

# The daemon's code where there is nothing to measure a model against.
_NO_REFERENCE = "unsupported"


@click.command()
@click.argument("first", shell_complete=complete_names)
@click.argument("second", shell_complete=complete_names)
@click.option(
    "--against",
    metavar="SOURCE",
    shell_complete=complete_sources,
    help="Measure both against this: a model that is here, a name on the hub, or a folder.",
)
@text_option
@windows_option
@click.option("--json", "as_json", is_flag=True, help="Print the cards as JSON.")
def command(
    first: str, second: str, *, against: str | None, text: str | None, windows: int | None, as_json: bool
) -> None:
    """Put two files of one model side by side: how far each is from the original, and how large it is.

    Cards that were made with the same original and text are taken as they are; otherwise both are measured. Where
    nothing is known to measure them against, the smaller one is measured against the larger one.
    """
    if reference(first) == reference(second):
        raise Failure(f"`{first}` and `{second}` are one model", "name two files of a model", "usage")
    client = Client()
    more = {"text": text_of(text), **({"windows": windows} if windows else {}), **client.hub()}
    models = [client.ask("POST", "/api/show", {"model": reference(name)}) for name in (first, second)]
    cards = [model.get("quality") or {} for model in models]
    direct = False
    if against or text or windows or not _alike(cards):
        try:
            body = more | {"against": reference(against) if against else ""}
            cards = [measure(client, body | {"model": reference(name)})["card"] for name in (first, second)]
        except Failure as error:
            if against or error.code != _NO_REFERENCE:
                raise
            direct = True
    if direct or not _alike(cards):
        small, large = sorted(range(2), key=lambda number: models[number]["size"])
        names = reference(first), reference(second)
        console.note(f"no original is known for both, so `{names[small]}` is measured against `{names[large]}`")
        card = measure(client, more | {"model": names[small], "against": names[large], "keep": False})["card"]
        cards = [{}, {}]
        cards[small] = card
    if as_json:
        console.as_json({first: cards[0], second: cards[1]})
        return
    _print((first, second), models, cards)


def _alike(cards: list[dict[str, Any]]) -> bool:
    """Whether both cards were made with the same reference, text and windows."""
    one, other = cards
    marks = [
        (each["reference"]["digest"], each["text"]["digest"], each["text"]["window"], each["windows"])
        for each in (one, other)
        if each
    ]
    return len(marks) == 2 and marks[0] == marks[1]


def _print(names: tuple[str, str], models: list[dict[str, Any]], cards: list[dict[str, Any]]) -> None:
    rows = [
        ("level", *(model["details"]["quantization_level"] for model in models)),
        ("size", *(size_text(model["size"]) for model in models)),
        *((title, *(figure_text(card[key]) if card else "" for card in cards)) for key, title in DIVERGENCES.items()),
        *(
            (title, *(figure_text(card[key], percent=True) if card else "" for card in cards))
            for key, title in (("top1", "same likeliest token"), ("flips", "flips"))
        ),
        ("perplexity", *_perplexities(cards)),
    ]
    console.table(("", *names), rows)
    card = cards[0] or cards[1]
    whole = "" if card["reference"]["whole"] else ", which is quantized itself"
    console.note(f"against {card['reference']['name']} at {card['reference']['level']}{whole}")
    console.note(f"text: {card['text']['name']}, {card['windows']} windows; ± are {card['errors']}")
    if cards[0] and cards[1]:
        console.note(_verdict(names, cards))


def _perplexities(cards: list[dict[str, Any]]) -> list[str]:
    """The perplexity of each; a reference's comes from the other one's card."""
    one, other = cards
    return [
        figure_text(own["perplexity"] if own else their["reference_perplexity"])
        for own, their in ((one, other), (other, one))
    ]


def _verdict(names: tuple[str, str], cards: list[dict[str, Any]]) -> str:
    """Which one is nearer to the reference, if their errors allow to say so."""
    means = [card["mean"] for card in cards]
    apart = means[1]["value"] - means[0]["value"]
    error = ((means[0]["error"] or 0.0) ** 2 + (means[1]["error"] or 0.0) ** 2) ** 0.5
    better = names[0] if apart > 0 else names[1]
    if abs(apart) <= 2 * error:
        return f"neither is nearer beyond doubt: the difference of the KL divergences is {abs(apart):.3g} ± {error:.2g}"
    return f"`{better}` is nearer to the original by {abs(apart):.3g} ± {error:.2g} nats of KL divergence"
