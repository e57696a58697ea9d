"""Renders a template: an interpreter of its nodes that counts its steps, and what it makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runtime.text.gotemplate.functions import FUNCTIONS
from runtime.text.gotemplate.nodes import (
    Action,
    Branch,
    Dot,
    FieldPath,
    Function,
    GoTemplateError,
    Jump,
    Literal,
    Node,
    Pipe,
    Verbatim,
)
from runtime.text.gotemplate.values import field, is_true, items, shown

# Steps of one rendering: a long conversation takes some ten thousand.
MOST_STEPS = 300_000
# Letters of the text, and of all texts that are made on the way to it.
MOST_LETTERS = 20 << 20
_NOTHING = object()


class _Jumped(Exception):
    """`break` or `continue`, on its way to its range."""


def render(nodes: Sequence[Node], data: Mapping[str, Any]) -> str:
    """The text of a template. Raises GoTemplateError."""
    return _Rendering(data).run(nodes)


class _Rendering:
    def __init__(self, data: Mapping[str, Any]) -> None:
        self._parts: list[str] = []
        self._letters = self._steps = 0
        self._data = data
        self._variables: list[tuple[str, Any]] = [("$", data)]

    def run(self, nodes: Sequence[Node]) -> str:
        self._walk(nodes, self._data)
        return "".join(self._parts)

    def _walk(self, nodes: Sequence[Node], dot: Any) -> None:
        for node in nodes:
            self._step()
            match node:
                case Verbatim(text):
                    self._write(text)
                case Action(pipe):
                    value = self._pipe(pipe, dot)
                    if not pipe.names:
                        self._write(shown(value))
                case Branch("range"):
                    self._range(node, dot)
                case Branch():
                    self._branch(node, dot)
                case Jump(kind):
                    raise _Jumped(kind)

    def _branch(self, node: Branch, dot: Any) -> None:
        before = len(self._variables)
        value = self._pipe(node.pipe, dot)
        if is_true(value):
            self._walk(node.body, value if node.kind == "with" else dot)
        else:
            self._walk(node.otherwise, dot)
        del self._variables[before:]

    def _range(self, node: Branch, dot: Any) -> None:
        before, names = len(self._variables), node.pipe.names
        empty = True
        for key, value in items(self._value(node.pipe, dot)):
            empty = False
            self._step()
            if names:
                given = (key, value) if len(names) == 2 else (value,)
                for name, each in zip(names, given, strict=True):
                    self._set(name, each, assigns=node.pipe.assigns)
            try:
                self._walk(node.body, value)
            except _Jumped as jump:
                if str(jump) == "break":
                    break
            finally:
                del self._variables[before:]
        if empty:
            self._walk(node.otherwise, dot)
        del self._variables[before:]

    def _pipe(self, pipe: Pipe, dot: Any) -> Any:
        """The value of a pipeline, which its variables get too."""
        value = self._value(pipe, dot)
        for name in pipe.names:
            self._set(name, value, assigns=pipe.assigns)
        return value

    def _value(self, pipe: Pipe, dot: Any) -> Any:
        value: Any = _NOTHING
        try:
            for command in pipe.commands:
                value = self._command(command, dot, value)
        except GoTemplateError as error:
            if str(error).startswith("line ") or not pipe.line:
                raise
            raise GoTemplateError(f"line {pipe.line}: {error}") from None
        return value

    def _command(self, command: tuple[Any, ...], dot: Any, before: Any) -> Any:
        self._step()
        first, rest = command[0], command[1:]
        if not isinstance(first, Function):
            if rest or before is not _NOTHING:
                raise GoTemplateError("what is no function is given a value")
            return self._operand(first, dot)
        if first.name in ("and", "or"):
            return self._lazily(first.name, rest, dot, before)
        values = [self._operand(each, dot) for each in rest]
        return self._call(first.name, values if before is _NOTHING else [*values, before])

    def _lazily(self, name: str, rest: tuple[Any, ...], dot: Any, before: Any) -> Any:
        """`and` and `or`, which look at no more values than they need."""
        value: Any = _NOTHING
        for operand in rest:
            value = self._operand(operand, dot)
            if is_true(value) == (name == "or"):
                return value
        value = value if before is _NOTHING else before
        if value is _NOTHING:
            raise GoTemplateError(f"`{name}` takes a value")
        return value

    def _call(self, name: str, values: list[Any]) -> Any:
        try:
            made = FUNCTIONS[name](*values)
        except TypeError:
            raise GoTemplateError(f"`{name}` is called with {len(values)} values") from None
        if isinstance(made, str):
            self._spend(len(made))
        return made

    def _operand(self, operand: Any, dot: Any) -> Any:
        match operand:
            case Dot():
                return dot
            case Literal(value):
                return value
            case Function(name):
                return self._call(name, [])
            case Pipe():
                return self._value(operand, dot)
            case FieldPath(names, variable, of):
                value = self._variable(variable) if variable else self._value(of, dot) if of else dot
                for name in names:
                    self._step()
                    value = field(value, name)
                return value
        raise AssertionError("not reached")

    def _variable(self, name: str) -> Any:
        return next(value for given, value in reversed(self._variables) if given == name)

    def _set(self, name: str, value: Any, *, assigns: bool) -> None:
        if not assigns:
            self._variables.append((name, value))
            return
        for place in range(len(self._variables) - 1, -1, -1):
            if self._variables[place][0] == name:
                self._variables[place] = (name, value)
                return

    def _write(self, text: str) -> None:
        self._spend(len(text))
        self._parts.append(text)

    def _spend(self, letters: int) -> None:
        self._letters += letters
        if self._letters > MOST_LETTERS:
            raise GoTemplateError(f"it makes more than {MOST_LETTERS:,} letters")

    def _step(self) -> None:
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise GoTemplateError(f"it takes more than {MOST_STEPS:,} steps")
