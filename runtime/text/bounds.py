"""Bounds on the memory of a rendering: each step that makes a text or a list is measured before or after it runs.

A deadline cannot interrupt a call of C, and one call of `replace` may make gigabytes of two texts of a few kilobytes.
So an operation that can multiply its input is measured before it runs: what it makes has at most `STEP_LIMIT`
characters or `ITEMS_LIMIT` items. All other operations make a few times their input. A sum over all steps of a
rendering bounds what many of them make together.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Callable, ItemsView, Iterable, KeysView, Mapping, Sequence, ValuesView
from functools import wraps
from types import GeneratorType
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.nodes import EvalContext
from jinja2.utils import Namespace, pass_eval_context

# The largest integer that a template may pass to a function, as in `range(N)`.
NUMBER_LIMIT = 100_000
# Characters of a text, and items of a list, that one step may make.
STEP_LIMIT, ITEMS_LIMIT = 32 << 20, 1 << 20
# Bytes of all texts and lists that a rendering makes, most of which it gives back at once.
TOTAL_LIMIT = 512 << 20
# Bits of an integer.
_BITS = 4096
_SHELLS = (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)
# Filters that look at the items of a list; all others make a text of whatever they get.
_OF_LISTS = re.compile(
    "attr|batch|count|d|default|dictsort|first|groupby|items|join|last|length|list|map|max|min|reject|rejectattr|"
    "reverse|select|selectattr|slice|sort|sum|tojson|unique"
)
# Methods whose result is no longer than the text that they belong to, or than `NUMBER_LIMIT`.
_METHODS = re.compile(
    r"is\w+|capitalize|casefold|center|count|endswith|find|index|ljust|lower|lstrip|partition|removeprefix|"
    "removesuffix|rfind|rindex|rjust|rpartition|rstrip|startswith|strip|swapcase|title|upper|zfill"
)


class _Spent(threading.local):
    total = 0


_spent = _Spent()


def begin() -> None:
    """A rendering begins in this thread."""
    _spent.total = 0


def spend(value: Any) -> Any:
    """Count a step's result, and return it; raises SecurityError when the rendering has made too much."""
    if isinstance(value, str | list | tuple | dict):
        _spent.total += sys.getsizeof(value)
        if _spent.total > TOTAL_LIMIT:
            raise SecurityError("more memory than a rendering may take")
    return value


def weigh(value: Any) -> int:
    """The characters of `value` as text, roughly; counting ends above `STEP_LIMIT`."""
    if isinstance(value, str):
        return len(value)
    total, left = 0, [value]
    while left and total <= STEP_LIMIT:
        item = left.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, Namespace):
            left.append(item.__dict__ | dict(getattr(item, "_Namespace__attrs", {})))
        elif isinstance(item, Mapping):
            left += [*item.keys(), *item.values()]
        elif isinstance(item, _SHELLS):
            left += item
        total += 4
    return total


def check(size: int) -> None:
    """Raises SecurityError for a text of more than `STEP_LIMIT` characters that is about to be made."""
    if size > STEP_LIMIT:
        raise SecurityError("a text too long for a prompt")


def check_numbers(arguments: Iterable[Any]) -> None:
    """Raises SecurityError for a whole number above `NUMBER_LIMIT` among the arguments of a call."""
    for value in arguments:
        if isinstance(value, int) and abs(value) > NUMBER_LIMIT:
            raise SecurityError(f"a call with the number {value:.3g}" if abs(value) < 1 << 64 else "too large a number")


def shown(value: Any) -> Any:
    """A value that is about to be written as text. Raises SecurityError for one that is too long."""
    check(weigh(value))
    return value


def join_texts(values: Sequence[Any], between: str = "") -> str:
    """All of `values` as one text."""
    check(sum(map(weigh, values)) + len(between) * len(values))
    return str(spend(between.join(map(str, values))))


def product(left: Any, right: Any) -> None:
    """Check `left * right`."""
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > _BITS:
            raise SecurityError("a number too large")
        return
    for many, count in ((left, right), (right, left)):
        if isinstance(many, str | list | tuple) and not (isinstance(count, int) and len(many) * count <= ITEMS_LIMIT):
            raise SecurityError("a text repeated too often")


def total(left: Any, right: Any) -> None:
    """Check `left + right`."""
    if isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
        check(len(left) + len(right))


def formatted(text: str, values: Iterable[Any]) -> None:
    """Check a text with places for `values`, in the style of `%` or of `format`.

    Raises SecurityError for a width that no prompt needs (`%99999d`), or one that comes from an argument (`%*d`).
    """
    if re.search(r"\d{5}|\*|\{[^{}]*\{", text):
        raise SecurityError("a format wider than a prompt")
    widest = max([*map(weigh, values), *map(int, re.findall(r"\d+", text))], default=0)
    check(len(text) + (text.count("%") + text.count("{")) * widest)


def check_method(text: str, name: str, arguments: Sequence[Any]) -> None:
    """Check the call of a method of `text`; raises SecurityError for one that makes too much, or that no prompt needs.

    An example of the latter is `translate`, which can put a long text in the place of each character.
    """
    if name in ("format", "format_map"):
        formatted(text, arguments)
    elif name == "replace" and len(arguments) > 1:
        _check_replace(text, str(arguments[0]), str(arguments[1]))
    elif name == "join":
        values = arguments[0] if arguments and isinstance(arguments[0], str | list | tuple) else ()
        check(sum(map(weigh, values)) + len(text) * len(values))
    elif name == "expandtabs":
        check(len(text) + text.count("\t") * (arguments[0] if arguments and isinstance(arguments[0], int) else 8))
    elif name in ("split", "rsplit", "splitlines"):
        cut = arguments[0] if arguments and isinstance(arguments[0], str) else ""
        _check_items(text.count(cut) if cut else len(text) // 2)
    elif not _METHODS.fullmatch(name):
        raise SecurityError(f"the method `{name[:40]}`, which no prompt needs")


def _check_items(count: int) -> None:
    if count > ITEMS_LIMIT:
        raise SecurityError("a list longer than a prompt needs")


def _check_replace(text: str, old: str, new: str) -> None:
    count = text.count(old) if old else len(text) + 1
    check(len(text) + count * max(0, len(new) - len(old)))


@pass_eval_context
def _replace(context: EvalContext, text: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = (str(shown(value)) for value in (text, old, new))
    _check_replace(text, old, new)
    return str(text.replace(old, new, -1 if count is None else count))


@pass_eval_context
def _join(context: EvalContext, value: Iterable[Any], d: Any = "", attribute: Any = None) -> str:
    if isinstance(value, str):
        _check_items(len(value))
    items = list(value if attribute is None else map(make_attrgetter(context.environment, attribute), value))
    return join_texts(items, str(shown(d)))


def _format(text: Any, *values: Any) -> str:
    text = str(shown(text))
    formatted(text, values)
    return str(text % values)


def _indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = str(shown(text))
    space = " " * min(width, 100) if isinstance(width, int) else width[:100]
    check(len(text) + (text.count("\n") + 1) * len(space))
    lines = text.split("\n")
    return "\n".join(
        line if (i == 0 and not first) or not (line or blank) else space + line for i, line in enumerate(lines)
    )


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | str | None = None, **options: Any) -> str:
    value = list(value) if isinstance(value, GeneratorType) else value
    if indent is None:
        check(weigh(value))
    elif len(" " * indent if isinstance(indent, int) else indent) > 100:
        raise SecurityError("an indent wider than a prompt")
    separators, sort_keys = options.get("separators"), bool(options.get("sort_keys"))
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if indent is None:
        return encoder.encode(value)
    pieces, size = [], 0
    for piece in encoder.iterencode(value):
        size += len(piece)
        check(size)
        pieces.append(piece)
    return "".join(pieces)


def _sum(values: Iterable[Any], attribute: Any = None, start: Any = 0) -> Any:
    if attribute is not None or not isinstance(start, int | float):
        raise SecurityError("a sum of something else than numbers")
    return sum(values, start)


def _measured(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose arguments and result are measured."""

    @wraps(function)
    def measured(*args: Any, **kwargs: Any) -> Any:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, str | int | list | tuple | dict)]
        check_numbers(given)
        for value in given:
            if isinstance(value, str) and name in ("list", "sort", "unique", "groupby", "batch", "slice", "map"):
                _check_items(len(value))
            elif not isinstance(value, str | int) and not _OF_LISTS.fullmatch(name):
                check(weigh(value))
        if name in ("wordcount", "title", "striptags"):
            _check_items(max((len(value) for value in given if isinstance(value, str)), default=0) // 2)
        return spend(function(*args, **kwargs))

    return measured


def filters() -> dict[str, Callable[..., Any]]:
    """Jinja's filters, each measured; filters that no chat template needs are left out."""
    own = {"format": _format, "indent": _indent, "join": _join, "replace": _replace, "sum": _sum, "tojson": _tojson}
    needless = ("center", "wordwrap", "urlize", "xmlattr", "filesizeformat", "random", "pprint")
    known = {name: function for name, function in FILTERS.items() if name not in needless} | own
    return {name: _measured(name, function) for name, function in known.items()}
