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


class Turn(msgspec.Struct):
    """One message: `role` is `system`, `user`, `assistant` or whatever else the model's template knows."""

    role: str
    parts: list[Part]

    @classmethod
    def of(cls, role: str, text: str) -> Turn:
        """A turn of text alone."""
        return cls(role, [Text(text)])

    @property
    def text(self) -> str:
        """Its text parts, joined."""
        return "".join(part.text for part in self.parts)
