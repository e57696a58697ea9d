"""`lm prune`: remove what nothing needs from the disk; or, with a model's name, from the model."""

from __future__ import annotations

import sys
from typing import Any

import click

from cli import console
from cli.client import Client
from cli.completing import complete_levels, complete_names
from cli.cutting import cut, parts_of
from cli.errors import Failure
from runtime.units import size_text

# Options that say what goes from a model.
_PARTS = ("vocabulary", "layers", "experts", "width", "level", "text")


@click.command()
@click.argument("name", required=False, shell_complete=complete_names)
@click.option("--vocabulary", metavar="LANGUAGES|FILE", help="Tokens to keep in NAME: `en`, `de,ru`, or a text's.")
@click.option("--layers", metavar="NUMBERS|auto:N", help="Layers to drop from NAME, from 0: `2,5`; or N of them.")
@click.option("--experts", metavar="SHARE|idle", help="Experts to keep in each layer of NAME: `0.5`, or all with work.")
@click.option("--width", type=float, metavar="SHARE", help="Channels to keep in each feed-forward of NAME: `0.8`.")
@click.option("--level", metavar="LEVEL", shell_complete=complete_levels, help="With `--width`: the level to make.")
@click.option("--text", metavar="FILE", help="Judge by this text instead of lm's own; `-` is stdin.")
@click.option("--as", "new", metavar="NEW", help="The name of the smaller model.")
@click.option("--paused", is_flag=True, help="Without NAME: remove paused pulls, too.")
@click.option("--yes", "-y", is_flag=True, help="Without NAME: do not ask.")
@click.option("--dry-run", is_flag=True, help="Only show what would go.")
@click.option("--json", "as_json", is_flag=True, help="Print what goes as JSON; removes only with --yes.")
def command(name: str | None, **options: Any) -> None:
    """Remove blobs that no model lists and pulls that failed for good, after showing them and asking.

    Models stay: `lm rm` removes those. A blob that a loaded model or a push needs stays as well.

    With NAME a smaller model is made of that one, which stays as it is. `--vocabulary` drops the tokens that no text in
    the named languages has, or that the text in a file does not use. Such texts keep their tokens, and any other text
    still has some. `--layers` drops layers, which costs quality. `--experts` drops experts of a mixture: experts
    without work first, then experts that add little to a text. `--width` drops channels of each feed-forward, fits the
    others to do their work, and makes the level anew from whole weights.
    """
    parts, of_disk = ({key: options.pop(key) for key in keys} for keys in (_PARTS, ("paused", "yes")))
    if name is None:
        if any((*parts.values(), options.pop("new"))):
            raise Failure("there is no model to cut", "name it: `lm prune NAME --vocabulary en`", "usage")
        return _tidy(**of_disk, **options)
    if any(of_disk.values()):
        raise Failure("`--paused` and `--yes` are for `lm prune` without a name", "leave them out", "usage")
    return cut(name, parts_of(**parts), **options)


def _tidy(*, paused: bool, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Remove what nothing needs from the disk."""
    client = Client()
    body = {"paused": paused, "dry_run": True}
    found = client.ask("POST", "/lm/prune", body)
    if not as_json:
        for row in found["needless"]:
            name = row["name"][:19] if row["kind"] == "blob" else row["name"]
            console.out(f"{name}  {size_text(row['bytes'])}  {row['reason']}")
    if found["needless"] and not dry_run and (yes or not as_json):
        if not yes:
            _ask(found["bytes"])
        found = client.ask("POST", "/lm/prune", body | {"dry_run": False})
    if as_json:
        console.as_json(found)
    elif not found["needless"]:
        console.note("nothing is needless here")
    else:
        console.note(f"{size_text(found['bytes'])} {'are free' if found['removed'] else 'would be free'}")


def _ask(freed: int) -> None:
    """Ask whether to go on. Raises Failure where nobody can be asked, click.Abort for a no."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise Failure("there is no terminal to ask on", "`lm prune --yes` removes without asking", "usage")
    click.confirm(f"Remove these, and free {size_text(freed)}?", abort=True, err=True)
