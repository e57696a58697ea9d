"""The pieces that an answer is told apart into."""

from __future__ import annotations

from typing import NamedTuple


class AnswerText(NamedTuple):
    """Text of the answer itself."""

    text: str


class Thought(NamedTuple):
    """Text of the thinking before, or between, the answer's own."""

    text: str


class CallBegun(NamedTuple):
    """Call number `call` of the answer begins; `id` is the model's own, or empty."""

    call: int
    name: str
    id: str = ""


class Arguments(NamedTuple):
    """More of the arguments of call number `call`: a piece of a JSON object."""

    call: int
    text: str


class CallEnded(NamedTuple):
    """Call number `call` is complete; its arguments are a JSON object."""

    call: int


class CallBroken(NamedTuple):
    """Call number `call` has begun and breaks the form of calls; `source` is all that the model wrote of it."""

    call: int
    source: str


Piece = AnswerText | Thought | CallBegun | Arguments | CallEnded | CallBroken
