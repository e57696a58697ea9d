"""The Jinja environment for chat templates, which are untrusted code from a file.

It follows Hugging Face's documentation of `apply_chat_template`: trimmed blocks, `tojson` that leaves characters alone,
`raise_exception`, `strftime_now`, loop controls, and `{% generation %}` as a block without effect. Jinja's own sandbox
keeps a template from reaching Python objects. It does not limit time or memory; the bounds here do.
"""

from __future__ import annotations

import ctypes
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# The largest integer that a template may pass to a function, as in `range(N)`.
NUMBER_LIMIT = 100_000
# Characters (or list items) that `*` may produce.
STRING_LIMIT = 1 << 20


class Overdue(BaseException):
    """Raised in a rendering thread whose time is up. No template can catch it: it is no `Exception`."""


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's text for training; here it is just its content."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with bounds on operators, calls and filters that multiply strings."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not (_small(left, 1000) and _small(right, 100)):
            raise SecurityError("a power too large")
        if operator == "*" and any(isinstance(side, str | list | tuple) for side in (left, right)):
            length, count = (len(left), right) if isinstance(left, str | list | tuple) else (len(right), left)
            if not isinstance(count, int) or length * count > STRING_LIMIT:
                raise SecurityError("a string repeated too often")
        if operator == "%" and isinstance(left, str):
            return _format(left, *(right if isinstance(right, tuple) else (right,)))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if isinstance(value, int) and abs(value) > NUMBER_LIMIT:
                raise SecurityError(f"a call with the number {value}")
        if getattr(function, "__name__", "") in ("format", "format_map") and isinstance(_owner(function), str):
            _check_widths(_owner(function))
        return super().call(context, function, *args, **kwargs)


def _owner(function: Any) -> Any:
    """The object of a bound method; Jinja's sandbox wraps `str.format`."""
    return getattr(getattr(function, "__wrapped__", function), "__self__", None)


def _small(value: Any, bound: int) -> bool:
    return isinstance(value, int | float) and abs(value) <= bound


def _check_widths(text: str) -> None:
    """Raises SecurityError for a format such as `%99999d`, or `%*d`, whose width is an argument."""
    if re.search(r"\d{5}|\*", text):
        raise SecurityError("a format wider than a prompt")


def _format(text: str, *values: Any) -> str:
    _check_widths(text)
    return text % values


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    space = " " * min(width, 100) if isinstance(width, int) else width[:100]
    lines = text.split("\n")
    return "\n".join(
        line if (i == 0 and not first) or not (line or blank) else space + line for i, line in enumerate(lines)
    )


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    separators, sort_keys = options.get("separators"), bool(options.get("sort_keys"))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def environment() -> ImmutableSandboxedEnvironment:
    """A fresh environment, without the filters and globals that no chat template needs."""
    env = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControlExtension])
    for name in ("center", "wordwrap", "urlize", "xmlattr", "filesizeformat", "random", "pprint"):
        del env.filters[name]
    env.filters["format"], env.filters["indent"], env.filters["tojson"] = _format, _indent, _tojson
    env.globals.clear()
    # The sandboxed variants: plain `range`, for one, has no bound.
    sandbox = ImmutableSandboxedEnvironment()
    env.globals.update({name: sandbox.globals[name] for name in ("range", "dict", "namespace", "joiner", "cycler")})
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return env


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise `Overdue` in this thread when the block still runs after `seconds`.

    A timer thread raises it through CPython's `PyThreadState_SetAsyncExc`, which interrupts Python code anywhere. The
    lock makes sure that nothing is raised after the block has ended.
    """
    thread = threading.get_ident()
    lock, done = threading.Lock(), False
    throw: Callable[..., int] = ctypes.pythonapi.PyThreadState_SetAsyncExc

    def strike() -> None:
        with lock:
            if not done:
                throw(ctypes.c_ulong(thread), ctypes.py_object(Overdue))

    timer = threading.Timer(seconds, strike)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            done = True
        timer.cancel()
