"""Raw prompts of OpenAI's and llama-server's routes: texts, token ids, both in one, objects, or several of these."""

from __future__ import annotations

from typing import Any

import msgspec

from runtime.errors import BadRequest
from runtime.options import MAX_INT
from server.api.request import refuse

MAX_PROMPTS = 64


class PromptObject(msgspec.Struct):
    """A prompt as an object: its text, and pictures or sounds, which are refused."""

    prompt_string: str
    multimodal_data: Any = None

    @property
    def text(self) -> str:
        """The text. Raises Unsupported."""
        refuse(multimodal_data=self.multimodal_data)
        return self.prompt_string


Prompts = str | PromptObject | list[str | int | PromptObject | list[str | int]]
"""One prompt or several: a text, an object, or token ids that may have texts between them."""
Prompt = str | list[int | str]


def prompts_of(given: Prompts) -> list[Prompt]:
    """The prompts one by one. A list with token ids in it is one prompt, any other has several. Raises BadRequest."""
    single = not isinstance(given, list) or any(isinstance(part, int) for part in given)
    found = [_prompt(each) for each in ([given] if single or not isinstance(given, list) else given)]
    if not found:
        raise BadRequest("`prompt` is empty", "send a text or token ids", "prompt")
    if len(found) > MAX_PROMPTS:
        message = f"`prompt` has {len(found)} entries and 1 to {MAX_PROMPTS} are possible"
        raise BadRequest(message, "send them in parts", "prompt")
    return found


def _prompt(given: Any) -> Prompt:
    if isinstance(given, PromptObject):
        return given.text
    if isinstance(given, str):
        return given
    parts = given if isinstance(given, list) else [given]
    if not parts or not all(isinstance(part, str) or is_id(part) for part in parts):
        raise BadRequest("`prompt` holds an entry that is no text and no token id", "correct it", "prompt")
    return [*parts]


def is_id(part: Any) -> bool:
    """Whether a value can be a token's id in any vocabulary."""
    return isinstance(part, int) and 0 <= part <= MAX_INT
