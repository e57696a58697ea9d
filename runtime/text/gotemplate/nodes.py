"""The parts of a template: texts, actions and their branches; pipelines of commands, and what commands are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class GoTemplateError(Exception):
    """A template that cannot be read, or not rendered; one sentence, with the line where it is known."""


@dataclass(frozen=True)
class Dot:
    """`.`, the present value."""


@dataclass(frozen=True)
class Literal:
    """A text, a number, true, false or nil."""

    value: Any


@dataclass(frozen=True)
class FieldPath:
    """`.A.B`, or with a `variable` (`$`, `$x`) its field: `$x.A`; or with `of` the field of a pipeline: `(…).A`."""

    names: tuple[str, ...]
    variable: str = ""
    of: Pipe | None = None


@dataclass(frozen=True)
class Function:
    """The name of a function."""

    name: str


@dataclass(frozen=True)
class Pipe:
    """Commands, each of which gets the value of the one before as its last argument.

    `names` are the variables that get the value, declared by `:=` or, with `assigns`, given before.
    """

    commands: tuple[tuple[Any, ...], ...]
    names: tuple[str, ...] = ()
    assigns: bool = False
    line: int = 0


@dataclass(frozen=True)
class Verbatim:
    """A text that is written out as it stands."""

    text: str


@dataclass(frozen=True)
class Action:
    """The value of a pipeline, written out unless it goes into a variable."""

    pipe: Pipe


@dataclass(frozen=True)
class Branch:
    """`if`, `with` or `range` (`kind`), with what is done otherwise."""

    kind: str
    pipe: Pipe
    body: tuple[Any, ...]
    otherwise: tuple[Any, ...] = field(default=())


@dataclass(frozen=True)
class Jump:
    """`break` or `continue` (`kind`)."""

    kind: str


Node = Verbatim | Action | Branch | Jump
