"""Files that stand for others: what Git keeps in the place of a large file, or a server sends instead of it.

Source: `docs/spec.md` of git-lfs.
"""

from __future__ import annotations

from quant.errors import MalformedFile

HEAD = 64
"""Bytes of a file by which such a one is told."""
_POINTERS = {b"version https://git-lfs": "lfs", b"version https://hawser": "lfs", b"# xet version": "xet"}
_PAGES = (b"<!doctype html", b"<html")


def check_substance(head: bytes, name: str) -> None:
    """Raises MalformedFile where file `name`, which begins with `head`, only stands for another file."""
    for start, tool in _POINTERS.items():
        if head.startswith(start):
            rule = f"`{name}` is only the pointer of Git {tool.upper()} to the file, which was not fetched"
            raise MalformedFile(rule, hint=f"run `git {tool} pull` in its folder")
    if head[:HEAD].lstrip().lower().startswith(_PAGES):
        hint = "fetch the file itself, whose address is another than that of the page about it"
        raise MalformedFile(f"`{name}` is a web page, which was saved in the place of the file", hint=hint)
