"""`lm improve`: better weights of the same bytes for a model that is here."""

from __future__ import annotations

import click

from cli import console
from cli.client import Client
from cli.completing import complete_names
from cli.describing import figure_text
from cli.errors import Failure
from cli.measuring import text_of, windows_option
from cli.naming import explaining, reference
from cli.pulling import show_lines
from runtime.units import size_text


@click.command()
@click.argument("name", shell_complete=complete_names)
@click.option("--now", is_flag=True, help="Do it now, and show how far it is, instead of when the machine is idle.")
@click.option("--off", is_flag=True, help="Leave this model as it is.")
@click.option("--text", metavar="FILE", help="Learn from this text instead of lm's own; `-` is stdin.")
@windows_option
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
def command(name: str, *, now: bool, off: bool, text: str | None, windows: int | None, as_json: bool) -> None:
    """Make a better file of the same size from the model's source, and serve it if it is better.

    Statistics of the model's inputs on a text decide how errors are made up for. Both files are measured on a text that
    the new one did not learn from; the new one is served only if it is better by more than the error. Running answers
    end on the older file, to which `lm rollback` goes back. Without --now this is done when nobody asks; weights that
    are not on this machine are fetched then. Ctrl-C pauses: the same command goes on.
    """
    if off and (now or text is not None):
        raise Failure("`--off` excludes `--now` and `--text`", "give one of them", "usage")
    client = Client()
    client.note_settings()
    body = {"model": reference(name), "now": now, "off": off, "text": text_of(text), **client.hub()}
    body |= {"windows": windows} if windows else {}
    with explaining(name):
        answer = show_lines(client.stream("/lm/improve", body)) if now else client.ask("POST", "/lm/improve", body)
    if as_json:
        console.as_json(answer)
    elif off:
        console.note(f"`{answer['model']}` is left as it is")
    elif now:
        better = answer["state"] == "better"
        console.out(f"{answer['model']}: {answer['sentence'] if better else 'it stays as it is'}")
        if not better:
            console.note(answer["sentence"])
        for title, card in (("before", answer["before"]), ("after", answer["after"])):
            if card:
                console.out(f"  {title:<6}  KL divergence {figure_text(card['mean'])}")
        if better:
            console.note(f"`lm rollback {answer['model']}` goes back")
    else:
        if answer["download_bytes"]:
            console.note(f"up to {size_text(answer['download_bytes'])} of weights are fetched for it")
        waits = f" ({answer['waits']})" if answer["waits"] else ""
        console.note(f"`{answer['model']}` is improved when this machine is idle{waits}; `lm jobs` shows how far it is")
