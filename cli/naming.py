"""From what a user types as a model to the text by which the daemon knows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from cli.errors import Failure
from registry.errors import BadName
from registry.names import LIBRARY, Reference, is_path, parse


def reference(text: str, level: str | None = None) -> str:
    """The name in a form that does not depend on the current folder, with the value of `--level`. Raises Failure."""
    if not text.isprintable():
        raise Failure(f"`{ascii(text)[1:-1]}` is not a name of a model", "see `lm list`", "bad_name")
    try:
        target = _parse(text)
        return target.text if level is None else _levelled(target, level).text
    except BadName as error:
        raise Failure(str(error), error.hint, error.code) from None


def _parse(text: str) -> Reference:
    path = Path(text)
    if is_path(text) and ":" in path.name and path.expanduser().exists():
        text = f"{text}/"  # the colon belongs to the folder's name
    return parse(text)


def _levelled(target: Reference, level: str) -> Reference:
    bare = target.kind == "ollama" and target.name.namespace == LIBRARY and target.name.tag is None
    if bare:  # the daemon knows which source the model of this name was made of
        return parse(f"{target.text}:{level}")
    if target.kind not in ("demo", "folder", "hub"):
        raise Failure(f"`{target.text}` comes quantized already", "leave `--level` out", "usage")
    wanted = parse(f"{target.text}:{level}" if target.level is None else target.text)
    if target.level is not None and parse(f"demo:{level}").level != target.level:
        raise Failure(f"the name says `{target.level}` and `--level` says `{level}`", "leave one of them out", "usage")
    return wanted


@contextmanager
def explaining(text: str) -> Iterator[None]:
    """Give a Failure of the block a better hint where `text` is no model but there is a folder of that name."""
    try:
        yield
    except Failure as error:
        if error.code == "model_not_found" and not is_path(text) and Path(text).is_dir():
            raise Failure(str(error), f"for the folder of that name write `./{text}`", error.code) from None
        raise


def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names for the shell, from a daemon that runs; none is started."""
    from cli.client import Client

    try:
        rows: list[dict[str, Any]] = Client(start=False).ask("GET", "/api/tags")["models"]
    except Failure:
        return []
    return [CompletionItem(row["name"]) for row in rows if row["name"].startswith(incomplete)]
