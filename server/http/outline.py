"""The outline of a JSON text: how many values it has and how deep they nest, found before anything is decoded.

Decoding holds the interpreter's lock until it is done. Its time grows with the bytes, which are few enough, and with
the values and objects, which are counted here. The text is scanned piece by piece, so that other threads run between
two pieces, and the scan ends as soon as a bound is passed.
"""

from __future__ import annotations

import re

from server.errors import BadBody, BodyTooLarge

MAX_DEPTH = 64
# Values of all lists and objects together: token ids are the most that anybody sends.
MAX_VALUES = 1 << 20
# Lists and objects, and names in objects, each: they cost more than other values.
MAX_OBJECTS = 1 << 17
_PIECE = 1 << 17

# Possessive quantifiers, and a closing quote that may be missing: no input makes the pattern backtrack.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.?[^"\\]*+)*+"?', re.DOTALL)
_OUTSIDE = b"[]{},:"
_NOT_OUTLINE = bytes(set(range(256)) - set(_OUTSIDE))
_AS_SQUARE = bytes.maketrans(b"{}", b"[]")
# Stands behind every piece while strings are removed: a string that is still open takes it along. JSON has no such
# byte.
_END = b"\0"


def check_outline(raw: bytes) -> None:
    """Raise BadBody for JSON that nests too deep or whose brackets do not match, BodyTooLarge for too many values."""
    opened = raw.count(b"[") + raw.count(b"{")
    few = opened <= MAX_DEPTH and raw.count(b",") <= MAX_VALUES and raw.count(b":") <= MAX_OBJECTS
    if not few and _too_deep(_brackets(raw)):
        raise BadBody(f"the body is nested more than {MAX_DEPTH} levels deep, or is not JSON", "send a flatter object")


def _brackets(raw: bytes) -> bytes:
    """The brackets outside strings, as square ones. Raises BodyTooLarge."""
    found: list[bytes] = []
    values = objects = names = 0
    carried = b""
    for start in range(0, len(raw), _PIECE):
        piece = carried + raw[start : start + _PIECE]
        rest, strings = _STRING.subn(b"", piece + _END)
        carried = b"" if rest.endswith(_END) else _open_string(piece)
        outline = rest.translate(None, _NOT_OUTLINE)
        colons = outline.count(b":")
        values += max(outline.count(b","), strings - colons)
        names += colons
        objects += outline.count(b"[") + outline.count(b"{")
        if values > MAX_VALUES or max(objects, names) > MAX_OBJECTS:
            raise BodyTooLarge(
                f"the body has more than {MAX_VALUES:,} values, or {MAX_OBJECTS:,} lists, objects or names",
                "send it in parts",
            )
        found.append(outline.translate(_AS_SQUARE, b",:"))
    return b"".join(found)


def _open_string(piece: bytes) -> bytes:
    """The beginning of a string that stands for one left open by `piece`, with the half of an escape at its end."""
    backslashes = len(piece) - len(piece.rstrip(b"\\"))
    return b'"\\' if backslashes % 2 else b'"'


def _too_deep(brackets: bytes) -> bool:
    """Whether brackets nest deeper than MAX_DEPTH, or do not match: innermost pairs are removed, one level a pass."""
    for _ in range(MAX_DEPTH):
        inner = brackets.replace(b"[]", b"")
        if len(inner) == len(brackets):
            break
        brackets = inner
    return len(brackets) > MAX_DEPTH or (len(brackets) > 0 and b"[]" in brackets)
