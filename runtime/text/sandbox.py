"""The Jinja environment for chat templates, which are untrusted code from a file.

It follows Hugging Face's documentation of `apply_chat_template`: trimmed blocks, `tojson` that leaves characters alone,
`raise_exception`, `strftime_now`, loop controls, and `{% generation %}` as a block without effect. Jinja's own sandbox
keeps a template from reaching Python objects. It does not limit time or memory: `deadline` bounds the time, and
`runtime/text/bounds.py` the memory.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from runtime.text import bounds


class Overdue(BaseException):
    """Raised in a rendering thread whose time is up. No template can catch it: it is no `Exception`."""


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's text for training; here it is just its content."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Code(CodeGenerator):
    """Writes `~`, which Jinja's sandbox does not intercept, as a call of the environment."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.join_texts((")
        for value in node.nodes:
            self.visit(value, frame)
            self.write(", ")
        self.write("))")


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with bounds on whatever makes a text or a list."""

    code_generator_class = _Code
    intercepted_binops = frozenset({"+", "*", "**", "%"})
    join_texts = staticmethod(bounds.join_texts)

    @staticmethod
    def concat(texts: Iterable[str]) -> str:
        """The text of a block (`{% set x %}…{% endset %}`) or a macro."""
        return bounds.join_texts(list(texts))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Templates may add to lists, of which each rendering has its own."""
        return (isinstance(obj, list) and attr == "append") or super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not (_small(left, 1000) and _small(right, 100)):
            raise SecurityError("a power too large")
        if operator == "*":
            bounds.product(left, right)
        if operator == "+":
            bounds.total(left, right)
        if operator == "%" and isinstance(left, str):
            values = right if isinstance(right, tuple) else (right,)
            bounds.formatted(left, values)
            return bounds.spend(left % values)
        return bounds.spend(super().call_binop(context, operator, left, right))

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        arguments = (*args, *kwargs.values())
        bounds.check_numbers(arguments)
        owner, name = _owner(function), getattr(function, "__name__", "")
        if isinstance(owner, str):
            bounds.check_method(owner, name, arguments)
        elif isinstance(owner, bytes | int | float) and name:
            raise SecurityError(f"the method `{name[:40]}`, which no prompt needs")
        elif isinstance(owner, list):
            bounds.spend(list(args))  # `append`, which gives nothing back
        return bounds.spend(super().call(context, function, *args, **kwargs))


def _owner(function: Any) -> Any:
    """The object of a bound method; Jinja's sandbox wraps `str.format`."""
    return getattr(getattr(function, "__wrapped__", function), "__self__", None)


def _small(value: Any, bound: int) -> bool:
    return isinstance(value, int | float) and abs(value) <= bound


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def environment() -> ImmutableSandboxedEnvironment:
    """A fresh environment, without the filters and globals that no chat template needs."""
    env = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControlExtension], finalize=bounds.shown
    )
    env.filters.clear()
    env.filters.update(bounds.filters())
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
    bounds.begin()
    try:
        yield
    finally:
        with lock:
            done = True
        timer.cancel()
