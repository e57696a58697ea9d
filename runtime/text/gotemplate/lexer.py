"""A template cut into texts and actions, and an action into its words, by the rules of Go's `text/template/parse`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from runtime.text.gotemplate.nodes import GoTemplateError

_SPACE = " \t\r\n"
_WORDS = re.compile(
    r"""(?P<space>[ \t\r\n]+)
    |(?P<string>"(?:[^"\\\n]|\\.)*")
    |(?P<raw>`[^`]*`)
    |(?P<char>'(?:[^'\\\n]|\\.)[^'\n]*')
    |(?P<number>[+-]?(?:0[xX][0-9a-fA-F_]+|[0-9][0-9_]*(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?))
    |(?P<field>\.[A-Za-z_][A-Za-z0-9_]*)
    |(?P<variable>\$[A-Za-z0-9_]*)
    |(?P<word>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<sign>:=|[=|,().])""",
    re.VERBOSE,
)
_ESCAPES = {
    "n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'", "a": "\a", "b": "\b", "f": "\f", "v": "\v",
}  # fmt: skip
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|.)", re.DOTALL)


class Word(NamedTuple):
    """One word of an action. `spaced`: white space comes before it, which parts `.A .B` from `.A.B`."""

    kind: str
    text: str
    spaced: bool


class Piece(NamedTuple):
    """A text (without `words`), or an action with its words; `line` counts from 1."""

    text: str
    words: list[Word] | None
    line: int


def pieces(source: str) -> Iterator[Piece]:
    """The texts and actions of a template, trimmed where its markers say so. Raises GoTemplateError."""
    at, trims, line = 0, False, 1
    while True:
        start = source.find("{{", at)
        text = source[at:] if start < 0 else source[at:start]
        plain = text.lstrip(_SPACE) if trims else text
        if start < 0:
            if plain:
                yield Piece(plain, None, line)
            return
        line_of_action = line + text.count("\n")
        inner = start + 2
        if source[inner : inner + 1] == "-" and source[inner + 1 : inner + 2] in tuple(_SPACE):
            plain, inner = plain.rstrip(_SPACE), inner + 2
        if plain:
            yield Piece(plain, None, line)
        words, at, trims = _action(source, inner, line_of_action)
        if words is not None:
            yield Piece("", words, line_of_action)
        line = line_of_action + source.count("\n", start, at)


def _action(source: str, at: int, line: int) -> tuple[list[Word] | None, int, bool]:
    """The words of the action that begins at `at`, None for a comment; where it ends, and whether it trims there."""
    if source.startswith("/*", at):
        end = source.find("*/", at)
        close = re.compile(r"(?:[ \t\r\n]-)?\}\}").match(source, end + 2) if end >= 0 else None
        if close is None:
            raise GoTemplateError(f"line {line}: a comment does not end in `*/}}}}`")
        return None, close.end(), len(close[0]) > 2
    words: list[Word] = []
    spaced = False
    while True:
        if source.startswith("}}", at):
            return words, at + 2, False
        if spaced and source.startswith("-}}", at):
            return words, at + 3, True
        found = _WORDS.match(source, at)
        if found is None or found.lastgroup is None:
            rest = source[at : at + 10].splitlines()
            what = f"`{rest[0]}` is not understood" if rest and rest[0] else "an action does not end in `}}`"
            raise GoTemplateError(f"line {line}: {what}")
        at, kind = found.end(), found.lastgroup
        if kind != "space":
            words.append(Word(kind, found[0], spaced))
        spaced = kind == "space"


def text_of(word: Word) -> str:
    """The text that a quoted word stands for. Raises GoTemplateError."""
    if word.kind == "raw":
        return word.text[1:-1].replace("\r", "")
    return _ESCAPE.sub(_unescaped, word.text[1:-1])


def _unescaped(found: re.Match[str]) -> str:
    code = found[1]
    if code in _ESCAPES:
        return _ESCAPES[code]
    number = int(code[1:], 16) if code[0] in "xuU" and len(code) > 1 else int(code, 8) if code.isdigit() else -1
    if not 0 <= number < 0x110000 or 0xD800 <= number < 0xE000:
        raise GoTemplateError(f"`\\{code}` is no escape in a text")
    return chr(number)
