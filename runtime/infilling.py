"""A text with a hole: the part of a request that asks for the text between two others."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from runtime.options import MAX_MESSAGES


class File(msgspec.Struct):
    """Another file of the project, for `Infill`."""

    name: str
    text: str


class Infill(msgspec.Struct, omit_defaults=True):
    """The rest of a prompt that asks for the text between two others.

    The answer comes before `suffix` and begins with `begun`. `files` are others of the project; with None nothing is
    said of a project, and a prompt that is too long is cut at its ends only where the request lets it (`truncate`).
    """

    suffix: str
    begun: str = ""
    files: Annotated[list[File], Meta(max_length=MAX_MESSAGES)] | None = None
