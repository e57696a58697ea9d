"""Fields within the fields of a body, such as the fields of a message, that its shape does not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec

_Entry = dict[str, msgspec.Raw]
# JSON of values that ask for nothing.
_NOTHING = frozenset({b"null", b"false", b"[]", b"{}", b'""'})
_LONGEST_NOTHING = max(map(len, _NOTHING))


def unknown_within(given: Mapping[str, msgspec.Raw], shape: type[msgspec.Struct], most: int) -> list[str]:
    """Names of fields below the first level, such as `messages[].weight`, each once, at most `most` of them.

    Fields that ask for nothing are left out.
    """
    found: dict[str, None] = {}
    for name in _within(given, shape, "", known=True):
        if len(found) == most:
            break
        found[name] = None
    return list(found)


def _within(entry: Mapping[str, msgspec.Raw], shape: type[msgspec.Struct], path: str, known: bool) -> Iterator[str]:
    """The unknown fields of an entry, unless all of them are `known`, and of the entries in it."""
    fields = dict.fromkeys(shape.__struct_encode_fields__)
    inner = _inner(shape)
    for name, raw in entry.items():
        if name in inner:
            many, entries = _entries(raw)
            for each in entries:
                yield from _within(each, inner[name], f"{path}{name}{'[]' if many else ''}.", known=False)
        elif not known and name not in fields and not _is_nothing(raw):
            yield f"{path}{name}"


def _entries(raw: msgspec.Raw) -> tuple[bool, list[_Entry]]:
    """The objects of a field: several or one; none where it holds something else."""
    many = bytes(raw)[:1] == b"["
    try:
        if many:
            return many, msgspec.json.decode(raw, type=list[_Entry])
        return many, [msgspec.json.decode(raw, type=_Entry)]
    except msgspec.MsgspecError:
        return many, []


def _is_nothing(raw: msgspec.Raw) -> bool:
    text = bytes(raw)
    return len(text) <= _LONGEST_NOTHING and text in _NOTHING


@cache
def _inner(shape: type[msgspec.Struct]) -> dict[str, type[msgspec.Struct]]:
    """The fields of a shape that hold structs, one or a list, with the shape of these."""
    hints = get_type_hints(shape)
    found = ((field.encode_name, _struct(hints[field.name])) for field in msgspec.structs.fields(shape))
    return {name: inner for name, inner in found if inner is not None}


def _struct(hint: Any) -> type[msgspec.Struct] | None:
    """The struct in a type: itself, in a list, or as one of several possibilities."""
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return hint
    if get_origin(hint) in (list, Union, UnionType):
        return next(filter(None, map(_struct, get_args(hint))), None)
    return None
