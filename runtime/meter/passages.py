"""The texts that models are measured on: lm's own, which come with it, and a user's.

lm's own texts are plain text and chats; chats are rendered with the model's own template. Held-out text and calibration
text share no sentence (`texts/ORIGIN.md` has their origins).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.errors import BadRequest
from runtime.llama.model import LlamaModel
from runtime.text.template import ChatTemplate

_FOLDER = Path(__file__).parent / "texts"
# Lines by which a text is known again, how many make it the same text, and the characters of a line that counts.
_MARKS, _SAME, _LONG = 64, 3, 40
_NAMES = {"held": "lm's held-out text", "calibration": "lm's calibration text"}


@dataclass(frozen=True)
class Passage:
    """A text with chats behind it. `name` is for people, `digest` the SHA-256 of all of it in hexadecimal."""

    name: str
    text: str
    chats: list[list[dict[str, str]]] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """The same for the same text, whatever its name."""
        data = self.text if not self.chats else self.text + json.dumps(self.chats)
        return hashlib.sha256(data.encode(errors="replace")).hexdigest()

    @property
    def marks(self) -> list[str]:
        """Marks of the text, to know it again: its digest, and digests of some of its longer lines, 16 digits each.

        The lines are chosen by their digests, so that two texts choose alike, whatever stands around them.
        """
        return [self.digest, *sorted(self._lines())[:_MARKS]]

    def shares(self, marks: Sequence[str]) -> bool:
        """Whether it is the text with these marks, or has several of its lines."""
        return self.digest in marks[:1] or len(self._lines() & set(marks[1:])) >= _SAME

    def _lines(self) -> set[str]:
        lines = (" ".join(line.split()) for line in self.text.splitlines())
        return {hashlib.sha256(line.encode(errors="replace")).hexdigest()[:16] for line in lines if len(line) >= _LONG}

    def parts(self, model: LlamaModel) -> list[tuple[str, bool]]:
        """The texts that a model reads, each with whether control tokens are parsed in it."""
        found = [(self.text, False)]
        if self.chats and model.chat_template:
            vocabulary = model.vocabulary
            bos, eos = vocabulary.special_text("bos"), vocabulary.special_text("eos")
            template = ChatTemplate(model.chat_template, bos=bos, eos=eos, control=vocabulary.control_texts())
            for chat in self.chats:
                found += _rendered(template, [dict(turn) for turn in chat])
        return found


def own(kind: str) -> Passage:
    """lm's own text: `held` or `calibration`."""
    chats = json.loads((_FOLDER / f"{kind}.json").read_text("utf-8"))
    return Passage(_NAMES[kind], (_FOLDER / f"{kind}.txt").read_text("utf-8"), chats)


def _rendered(template: ChatTemplate, chat: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    """A chat as a template writes it, nothing where it refuses; the next chat begins on a line of its own."""
    try:
        return [(part.text, part.special) for part in template.render(chat, answering=False)] + [("\n", False)]
    except BadRequest:
        return []
