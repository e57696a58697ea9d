"""Inputs of the embedding routes of OpenAI and llama-server: texts, token ids, both in one, messages, prompts."""

from __future__ import annotations

from typing import Any

import msgspec

from runtime.errors import BadRequest
from server.api.content import Content, content_texts
from server.api.prompts import is_id
from server.api.request import refuse
from server.api.vectors import Mixed


class InputObject(msgspec.Struct):
    """An input as an object: a message (a text, or parts that are texts), or a prompt of llama-server."""

    content: Content = None
    prompt_string: str | None = None
    multimodal_data: Any = None

    def text(self, field: str) -> str:
        """Its text. Raises BadRequest, Unsupported for what is no text."""
        refuse(multimodal_data=self.multimodal_data)
        if isinstance(self.prompt_string, str):
            return self.prompt_string
        return "".join(content_texts(self.content, field))


Inputs = str | list[str | int | list[int | str] | InputObject] | InputObject


def inputs_of(given: Inputs | None, field: str, *, empty: bool = False) -> list[Mixed]:
    """The inputs one by one: a text, token ids with or without texts between them, an object, or a list of these.

    An `empty` text may be allowed: models put tokens of their own around it. Raises BadRequest.
    """
    single = not isinstance(given, list) or any(isinstance(entry, int) for entry in given)
    found: list[Any] = [given] if single or not isinstance(given, list) else given
    inputs = [entry.text(field) if isinstance(entry, InputObject) else entry for entry in found]
    if not inputs or any(entry is None or entry == [] or (entry == "" and not empty) for entry in inputs):
        raise BadRequest(f"`{field}` is empty, or holds an empty text", "send some text", field)
    for entry in inputs:
        parts = entry if isinstance(entry, list) else []
        if isinstance(entry, int) or not all(isinstance(part, str) or is_id(part) for part in parts):
            raise BadRequest(
                f"`{field}` mixes its forms, or holds a number that is no token id", "send one form", field
            )
    return inputs
