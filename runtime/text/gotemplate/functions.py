"""The functions of templates: Go's own, and Ollama's (`json`, `currentDate`, …)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from runtime.text.gotemplate.nodes import GoTemplateError
from runtime.text.gotemplate.values import as_json, bare, equal, is_true, shown

_VERB = re.compile(r"%([-+# 0]*)(\d{0,4})(?:\.(\d{0,3}))?(.)", re.DOTALL)
_WIDEST = 1000


def _length(value: Any) -> int:
    value = bare(value)
    if isinstance(value, str):
        return len(value.encode(errors="replace"))  # Go counts bytes
    if isinstance(value, Mapping | list | tuple):
        return len(value)
    raise GoTemplateError("`len` is asked of what has no length")


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        value = bare(value)
        if isinstance(value, Mapping):
            value = value.get(key) if isinstance(key, str | int) else None
        elif isinstance(value, list | tuple):
            value = value[_place(key, len(value) - 1)]
        else:
            raise GoTemplateError("`index` is asked of what is no list and no map")
    return value


def _slice(value: Any, *places: Any) -> Any:
    value = bare(value)
    if not isinstance(value, str | list | tuple) or len(places) > 2:
        raise GoTemplateError("`slice` takes a text or a list, and at most two places")
    whole = value.encode(errors="replace") if isinstance(value, str) else value
    bounds = [_place(place, len(whole)) for place in places]
    start, end = bounds[0] if bounds else 0, bounds[1] if len(bounds) > 1 else len(whole)
    if start > end:
        raise GoTemplateError("`slice` ends before it begins")
    part = whole[start:end]
    return part.decode(errors="replace") if isinstance(part, bytes) else part


def _place(key: Any, last: int) -> int:
    if isinstance(key, bool) or not isinstance(key, int) or not 0 <= key <= last:
        raise GoTemplateError("a place is out of range")
    return key


def _eq(first: Any, *others: Any) -> bool:
    if not others:
        raise GoTemplateError("`eq` takes two values")
    return any(equal(first, other) for other in others)


def _less(one: Any, other: Any) -> bool:
    one, other = bare(one), bare(other)
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in (one, other))
    if not (numbers or (isinstance(one, str) and isinstance(other, str))):
        raise GoTemplateError("values of different kinds are put in order")
    return bool(one < other)


def _and(*values: Any) -> Any:
    return next((value for value in values if not is_true(value)), values[-1])


def _or(*values: Any) -> Any:
    return next((value for value in values if is_true(value)), values[-1])


def _print(*values: Any) -> str:
    text = ""
    for number, value in enumerate(values):
        apart = number and not isinstance(value, str) and not isinstance(values[number - 1], str)
        text += (" " if apart else "") + shown(value, 1)
    return text


def _printf(form: Any, *values: Any) -> str:
    if not isinstance(form, str):
        raise GoTemplateError("`printf` takes a text first")
    left = list(values)

    def one(found: re.Match[str]) -> str:
        flags, width, digits, verb = found.groups()
        if verb == "%":
            return "%"
        if not left:
            return f"%!{verb}(MISSING)"
        if int(width or 0) > _WIDEST:
            raise GoTemplateError("`printf` makes a text too wide")
        text = _formed(verb, left.pop(0), flags, digits)
        padded = text.ljust(int(width or 0)) if "-" in flags else text.rjust(int(width or 0))
        return text.zfill(int(width or 0)) if "0" in flags and "-" not in flags else padded

    text = _VERB.sub(one, form)
    return text + (f"%!(EXTRA {', '.join(shown(value, 1) for value in left)})" if left else "")


def _formed(verb: str, value: Any, flags: str, digits: str | None) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    places = int(digits or (0 if digits == "" else 6))
    if verb in "sv":
        text = shown(value, 1)
        return text[: int(digits)] if digits and verb == "s" else text
    if verb == "q" and isinstance(value, str):
        return as_json(value).replace("\\u003c", "<").replace("\\u003e", ">").replace("\\u0026", "&")
    if verb == "d" and isinstance(value, int) and not isinstance(value, bool):
        return f"{value:+d}" if "+" in flags else str(value)
    if verb in "xX" and isinstance(value, int) and not isinstance(value, bool):
        return f"{value:{verb}}"
    if verb == "t" and isinstance(value, bool):
        return shown(value)
    if verb in "feg" and number:
        return f"{float(value):.{places}{verb}}"
    raise GoTemplateError(f"`printf` cannot write this value by `%{verb}`")


def _today(days: int = 0) -> Callable[[], str]:
    return lambda: (datetime.now() + timedelta(days=days)).strftime("%Y-%m-%d")


def _refused(name: str) -> Callable[..., Any]:
    def refuse(*_: Any) -> Any:
        raise GoTemplateError(f"`{name}` is not among the functions that lm runs")

    return refuse


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "and": _and,
    "or": _or,
    "not": lambda value: not is_true(value),
    "len": _length,
    "index": _index,
    "slice": _slice,
    "eq": _eq,
    "ne": lambda one, other: not equal(one, other),
    "lt": _less,
    "le": lambda one, other: not _less(other, one),
    "gt": lambda one, other: _less(other, one),
    "ge": lambda one, other: not _less(one, other),
    "print": _print,
    "println": lambda *values: " ".join(shown(value, 1) for value in values) + "\n",
    "printf": _printf,
    "json": as_json,
    "currentDate": _today(),
    "yesterdayDate": _today(-1),
    **{name: _refused(name) for name in ("html", "js", "urlquery", "call")},
}
