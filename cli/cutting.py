"""A smaller model made of one that is here, for `lm prune NAME`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from cli import console
from cli.client import Client
from cli.errors import Failure
from cli.measuring import text_of
from cli.naming import explaining, reference
from cli.pulling import show_lines

Line = dict[str, Any]


def parts_of(*, vocabulary: str | None, layers: str | None, experts: str | None, text: str | None) -> Line:
    """The fields of a body that say what goes; `text` is the file by which experts are judged. Raises Failure."""
    body: Line = _tokens(vocabulary) if vocabulary else {}
    body |= {"layers": _numbers(layers)} if layers else {}
    body |= {"experts": _share(experts)} if experts else {}
    body |= {"sample": text_of(text), "sample_name": Path(text).stem if text != "-" else "text"} if text else {}
    return body


def cut(name: str, parts: Line, *, new: str | None, dry_run: bool, as_json: bool) -> None:
    """Make a model without some of its parts, and show how it goes; with `dry_run` say what would go."""
    body: Line = {"model": reference(name), "name": new or "", **parts}
    with explaining(name), closing(Client().stream("/lm/cut", body)) as lines:
        shown = _until_planned(lines) if dry_run else lines
        if as_json:
            for line in shown:
                console.out(json.dumps(line, ensure_ascii=False))
            return
        last = show_lines(shown)
    if not dry_run:
        console.note(f"`{last['name']}` is here, and `{name}` is as it was")


def _until_planned(lines: Iterator[Line]) -> Iterator[Line]:
    """The lines up to the one with the plan; then the daemon gives up, and nothing is kept."""
    for line in lines:
        yield line
        if line["phase"] == "planned":
            return


def _tokens(vocabulary: str) -> Line:
    """The fields of the body for a file, which is there, or for languages."""
    path = Path(vocabulary)
    if vocabulary == "-" or path.is_file():
        return {"text": text_of(vocabulary), "text_name": path.stem if vocabulary != "-" else "text"}
    if "/" in vocabulary or path.suffix:
        raise Failure(f"there is no file `{vocabulary}`", "name a file of plain text, or languages such as `en`")
    return {"vocabulary": [word.strip() for word in vocabulary.split(",") if word.strip()]}


def _share(words: str) -> float | str:
    """A share such as `0.5`, or a word, which the daemon knows or refuses."""
    try:
        return float(words)
    except ValueError:
        return words


def _numbers(layers: str) -> list[int]:
    try:
        return [int(word) for word in layers.split(",")]
    except ValueError:
        raise Failure(f"`{layers}` are no numbers of layers", "write them as `2,5`, from 0", "usage") from None
