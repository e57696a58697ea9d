"""A conversation as every dialect decodes it and as the engine reads it: turns, made of parts.

The daemon's dialects make turns of their bodies, and the worker renders them with the model's template. A further kind
of part (an image, a call of a tool, its result) is one more tagged struct in `Part`.
"""

from __future__ import annotations

import msgspec


class Text(msgspec.Struct, tag="text"):
    """Plain text."""

    text: str


Part = Text


class ToolCall(msgspec.Struct):
    """A call that the assistant made of a tool. `arguments` is the text of a JSON object."""

    name: str
    arguments: str = "{}"
    id: str = ""


class Turn(msgspec.Struct, omit_defaults=True):
    """One message: `role` is `system`, `user`, `assistant`, `tool` or whatever else the model's template knows.

    The assistant's may have `calls`, and the `thinking` before its text. A tool's has its result as text, with the id
    of the call (`call_id`) or the name of the `tool`.
    """

    role: str
    parts: list[Part]
    calls: list[ToolCall] = []
    thinking: str = ""
    call_id: str = ""
    tool: str = ""

    @classmethod
    def of(cls, role: str, text: str) -> Turn:
        """A turn of text alone."""
        return cls(role, [Text(text)])

    @property
    def text(self) -> str:
        """Its text parts, joined."""
        return "".join(part.text for part in self.parts)
