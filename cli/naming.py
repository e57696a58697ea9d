"""From what a user types as a model to the text by which the daemon knows it."""

from __future__ import annotations

import os.path
from collections.abc import Iterator
from contextlib import contextmanager

from cli.errors import Failure
from registry.errors import BadName
from registry.names import Reference, is_path, parse


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
    path = _written_as_path(text)
    try:
        return parse(path)
    except BadName:
        if is_path(path) or folder_of(text) is None:
            raise
        return parse(_escaped(f"./{text}"))  # it can be nothing else


def _written_as_path(text: str) -> str:
    """The text as `parse` wants a path: a folder that Tab has completed (`tale/`) and `usb/x.gguf` are paths as well.

    `org/repo` stays the name of a repository, whatever folders there are.
    """
    if is_path(text):
        return _escaped(text)
    body = folder_of(text)
    if body is None and text.endswith("/"):
        raise Failure(f"there is no folder `{text[:80]}` here", "see `ls`, or give the whole path", "model_not_found")
    if body is not None and (body.endswith("/") or body.lower().endswith(".gguf")):
        return _escaped(f"./{text}")
    return text


def _escaped(path: str) -> str:
    """A path whose name has a colon of its own, marked by a slash at its end."""
    has_colon = ":" in os.path.basename(path.rstrip("/"))  # noqa: PTH119
    return f"{path}/" if has_colon and _exists(path) else path


def folder_of(text: str) -> str | None:
    """The folder or file that is there under a name as it was typed, with or without a level; None where none is."""
    body, _, level = text.rpartition(":")
    candidates = [text] if "/" in level or not body else [text, body]
    return next((each for each in candidates if _exists(each)), None)


def _exists(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))  # noqa: PTH110, PTH111  a name that is too long is no error here


def _levelled(target: Reference, level: str) -> Reference:
    if target.kind == "bare" and target.name.tag is None:  # the daemon knows what it was made of
        return parse(f"{target.text}:{level}")
    if target.kind in ("ollama", "oci", "bare"):
        raise Failure(f"`{target.text}` comes quantized already", "leave `--level` out", "usage")
    wanted = parse(f"{target.text}:{level}" if target.level is None else target.text)
    if target.level is not None and parse(f"demo:{level}").level != target.level:
        raise Failure(f"the name says `{target.level}` and `--level` says `{level}`", "leave one of them out", "usage")
    return wanted


@contextmanager
def explaining(text: str) -> Iterator[None]:
    """Give a Failure of the block a better hint where `text` was taken for a name and there is a folder called so."""
    try:
        yield
    except Failure as error:
        codes = ("model_not_found", "access_denied", "source_unavailable", "offline")
        hint = mistakable(text) if error.code in codes else ""
        if hint and error.code in codes[2:] and error.hint:
            hint = f"{error.hint}; {hint}"
        raise Failure(str(error), hint, error.code, error.body) if hint else error from None


def mistakable(text: str) -> str:
    """How to name the folder that is called like the name `text`; "" where there is none, or it is meant already."""
    there = folder_of(text)
    if there is None or is_path(_written_as_path(text)):
        return ""
    kind = "folder" if os.path.isdir(there) else "file"  # noqa: PTH112
    return f"for the {kind} of that name write `./{text}`"
