"""Values of a template as Go sees them: their truth, their text, their fields, comparisons, JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from runtime.text.gotemplate.nodes import GoTemplateError

_HTML = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_DEEPEST = 60


class Record:
    """A Go struct: its fields by name; any other field is an error. `plain` is what JSON shows of it.

    One that is `spoken` is written as JSON, as types with a method `String` are.
    """

    def __init__(self, fields: Mapping[str, Any], plain: Any, *, spoken: bool = False) -> None:
        self.fields, self.plain, self.spoken = fields, plain, spoken


class Spoken:
    """A list or a map that is written as JSON: Ollama's tools, and the arguments of a call."""

    def __init__(self, value: Any, plain: Any) -> None:
        self.value, self.plain = value, plain


def bare(value: Any) -> Any:
    """The list or map in a value."""
    return value.value if isinstance(value, Spoken) else value


def is_true(value: Any) -> bool:
    """Whether `if` takes a value: all but nothing, zero, and what is empty."""
    return isinstance(value, Record) or bool(bare(value))


def field(value: Any, name: str) -> Any:
    """A field of a value. Raises GoTemplateError where it can have none."""
    value = bare(value)
    if isinstance(value, Record):
        if name not in value.fields:
            raise GoTemplateError(f"there is no field `.{name[:40]}`")
        return value.fields[name]
    if isinstance(value, Mapping):
        return value.get(name)
    kind = "nothing" if value is None else "what is no object"
    raise GoTemplateError(f"`.{name[:40]}` is asked of {kind}")


def shown(value: Any, depth: int = 0) -> str:
    """A value as it is written out."""
    match value:
        case str():
            return value
        case None:
            return "<no value>" if not depth else "<nil>"
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return _float(value)
        case Spoken():
            return as_json(value)
        case Record():
            return as_json(value)
    if depth > _DEEPEST:
        raise GoTemplateError("a value lies too deep in others to be written")
    if isinstance(value, Mapping):
        inner = (f"{shown(key, depth + 1)}:{shown(each, depth + 1)}" for key, each in sorted(value.items()))
        return f"map[{' '.join(inner)}]"
    return f"[{' '.join(shown(each, depth + 1) for each in value)}]"


def _float(value: float) -> str:
    """A number as Go's `%v` writes it."""
    if value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    text = repr(value)
    mantissa, mark, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent):+03d}" if mark else text


def as_json(value: Any) -> str:
    """A value as Go's `json.Marshal` writes it: compact, with `<`, `>` and `&` escaped."""
    try:
        text = json.dumps(plain(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        raise GoTemplateError("a value cannot be written as JSON") from None
    for letter, escape in _HTML.items():
        text = text.replace(letter, escape)
    return text


def plain(value: Any) -> Any:
    """The value as JSON has it."""
    match value:
        case Spoken() | Record():
            return value.plain
        case Mapping():
            return {str(key): plain(value[key]) for key in sorted(value)}
        case list() | tuple():
            return [plain(each) for each in value]
    return value


def equal(one: Any, other: Any) -> bool:
    """Whether two values are equal. Raises GoTemplateError for values that Go does not compare."""
    one, other = bare(one), bare(other)
    if one is None or other is None:
        return one is other
    if isinstance(one, bool) == isinstance(other, bool):
        for kind in ((str,), (int, float)):
            if isinstance(one, kind) and isinstance(other, kind):
                return bool(one == other)
    raise GoTemplateError("`eq` compares values of different kinds")


def items(value: Any) -> Iterable[tuple[Any, Any]]:
    """The keys and values over which `range` goes. Raises GoTemplateError."""
    value = bare(value)
    match value:
        case None:
            return []
        case bool() | str() | float() | Record():
            raise GoTemplateError("`range` goes over a list, a map or a number")
        case int():
            return enumerate(range(value))
        case Mapping():
            return sorted(value.items())
        case Sequence():
            return enumerate(value)
    raise GoTemplateError("`range` goes over a list, a map or a number")
