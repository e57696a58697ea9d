"""`lm quantize`: another level of a model beside the first, with errors weighed by what matters to the model."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cli import console
from cli.client import Client
from cli.completing import complete_levels, complete_names
from cli.creating import sent
from cli.errors import Failure
from cli.measuring import text_of
from cli.naming import explaining, reference
from cli.pulling import show_lines


@click.command()
@click.argument("name", shell_complete=complete_names)
@click.option("--level", required=True, metavar="LEVEL", shell_complete=complete_levels, help="Such as Q4_K_M or 4GB.")
@click.option(
    "--effort",
    metavar="EFFORT",
    default="importance",
    show_default=True,
    help="`quick`: by the weights alone, as `lm pull` does it; `importance`: errors weigh by the inputs of a column; "
    "`best`: an error in one column is made up for in the others.",
)
@click.option(
    "--goal",
    metavar="GOAL",
    default="quality",
    show_default=True,
    help="`speed`: types that this machine reads slowly count by the time, not by their bytes.",
)
@click.option("--text", metavar="FILE", help="Learn from this text instead of lm's own; `-` is stdin.")
@click.option("--importance", metavar="FILE", help="Learn nothing, and take this file of `llama-imatrix`.")
@click.option("--json", "as_json", is_flag=True, help="Print progress as lines of JSON.")
def command(
    name: str, *, level: str, effort: str, goal: str, text: str | None, importance: str | None, as_json: bool
) -> None:
    """Make another level of a model that is here, from its source, beside the levels that are here.

    With the effort `importance` the model reads some text first, and its inputs are summed up: errors in columns with
    large inputs then count for more. The sums are kept for the next level. A budget, and a level of K types such as
    Q4_K_M, is a number of bytes then: each matrix gets its type by what the output feels of it. That needs a source on
    this machine. A level that is here already is made anew: `lm cp` gives the old one another name.
    Ctrl-C pauses: the same command goes on.
    """
    if text is not None and importance is not None:
        raise Failure("`--text` and `--importance` exclude each other", "give one of them", "usage")
    client = Client()
    client.note_settings()
    body = {"model": reference(name), "level": level, "effort": effort, "goal": goal, "text": text_of(text)}
    body |= client.hub()
    if importance is not None:
        path = Path(importance)
        if not path.is_file():
            raise Failure(f"`{importance}` is no file", "name a file of `llama-imatrix`")
        (digest,) = sent(client, path).values()
        body |= {"importance": digest, "importance_name": path.name}
    with explaining(name):
        lines = client.stream("/lm/quantize", body)
        if as_json:
            for line in lines:
                console.out(json.dumps(line, ensure_ascii=False))
            return
        last = show_lines(lines)
    console.note(f"`{last['name']}` is here; `lm quality {last['name']}` measures it")
