"""Contents of messages as clients of OpenAI and llama-server send them: a text, or parts that are texts."""

from __future__ import annotations

import msgspec

from runtime.errors import BadRequest
from server.errors import Unsupported

_LONGEST_TYPE = 40


class ContentPart(msgspec.Struct):
    """A piece of a message's content."""

    type: str
    text: str | None = None


Content = str | list[ContentPart] | None


def content_texts(content: Content, field: str) -> list[str]:
    """The texts of a content, one for each part; raises BadRequest without any, Unsupported for another kind of part.

    `field` is the field of the body that holds it.
    """
    if content is None or content == []:
        raise BadRequest(f"an entry of `{field}` has no `content`", "send a text", field)
    parts = content if isinstance(content, list) else [ContentPart("text", content)]
    for part in parts:
        if part.type != "text":
            refuse_part(part.type, field)
        if part.text is None:
            raise BadRequest(f"a part of type `text` in `{field}` has no `text`", "send its text", field)
    return [part.text or "" for part in parts]


def refuse_part(kind: str, field: str) -> None:
    """Raise Unsupported for a part of this type in the field `field` of a body, which is no text."""
    kind = kind[:_LONGEST_TYPE]
    raise Unsupported(f"`{kind}` is not in this version of lm", f"leave `{kind}` out", field)
