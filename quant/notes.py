"""Entries of our own in a GGUF file: written by the converter, read by the runtime before the model is loaded.

`lm.stop_token_ids` is the list of all token ids that end an answer; GGUF has room for three. `lm.tokenizer` is a
`TokenizerNote`, as JSON.
"""

from __future__ import annotations

import json
from typing import Literal

import msgspec

from quant.errors import MalformedFile

STOPS = "lm.stop_token_ids"
TOKENIZER = "lm.tokenizer"
SAME_STEPS = ("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "StripAccents")
"""Steps of preparation without arguments, by the names that `tokenizer.json` has for them, too."""
# The number of arguments of each step. `Prepend`, `Replace` and `Strip` are named as in `tokenizer.json`. `BertClean`
# and `BertAccents` are parts of its `BertNormalizer`; `Collapse` makes one space of several, as SentencePiece does.
ARGUMENTS = {
    **dict.fromkeys(SAME_STEPS, 0),
    "Prepend": 1,
    "Replace": 2,
    "Strip": 1,
    "BertClean": 0,
    "BertAccents": 0,
    "Collapse": 0,
}
# Unicode's property White_Space; Python's `isspace` has four separators more.
WHITE_SPACE = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
)
Space = Literal["", "each", "first", "never"]


class NotedToken(msgspec.Struct, array_like=True, frozen=True):
    """An added token. Each letter of `flags` says one thing of it.

    - `l`, `r`: it takes the white space to its left, to its right.
    - `w`: it is found only as a word of its own.
    - `n`: it is looked for in the text after all steps, else in the text as it is.
    - `s`: it steers the model, so that only templates may write it.
    - `h`: llama.cpp does not see it, because its text in the vocabulary is another.
    """

    id: int
    text: str
    flags: str


class TokenizerNote(msgspec.Struct, omit_defaults=True, frozen=True):
    """How the original tokenizer reads a text, as far as llama.cpp would read it otherwise.

    - `added`: all added tokens.
    - `steps`: the preparation of a text, in order; each step is its name and its arguments.
    - `space`: which stretches of text between added tokens get a space in front where they have none; "" leaves that to
      llama.cpp.
    - `end`: the id of the token for a space at the end of a stretch, and the characters that count as a space.
    """

    added: list[NotedToken] = []
    steps: list[list[str]] = []
    space: Space = ""
    end: tuple[int, str] | None = None

    def encode(self) -> str:
        """The note as JSON, without what is empty."""
        return json.dumps(msgspec.to_builtins(self), ensure_ascii=False)

    @classmethod
    def decode(cls, text: str | bytes) -> TokenizerNote:
        """The note in this JSON; raises MalformedFile for an unknown step and for other than a note."""
        try:
            note = msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError:
            note = None
        if note is None or not all(step and ARGUMENTS.get(step[0]) == len(step) - 1 for step in note.steps):
            raise MalformedFile(f"`{TOKENIZER}` is no note on a tokenizer")
        return note
