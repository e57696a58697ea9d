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
_AUTO = "auto:"


def parts_of(
    *,
    vocabulary: str | None,
    layers: str | None,
    experts: str | None,
    width: float | None = None,
    level: str | None = None,
    text: str | None,
) -> Line:
    """The fields of a body that say what goes; by the file `text` parts are judged. Raises Failure."""
    body: Line = _tokens(vocabulary) if vocabulary else {}
    body |= _layers(layers) if layers else {}
    body |= {"experts": _share(experts)} if experts else {}
    body |= {"width": width} if width is not None else {}
    body |= {"level": level} if level else {}
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


def _layers(words: str) -> Line:
    """The field of the body for numbers such as `2,5`, or for `auto:2`."""
    try:
        if words.startswith(_AUTO):
            return {"fewer_layers": int(words.removeprefix(_AUTO))}
        return {"layers": [int(word) for word in words.split(",")]}
    except ValueError:
        hint = "write them as `2,5`, from 0; or `auto:1` for one that is chosen"
        raise Failure(f"`{words}` are no numbers of layers", hint, "usage") from None
