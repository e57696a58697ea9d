"""GGUF entries of our own, `lm.*`: written by the converter, read by the runtime before the model is loaded.

`lm.version`, `lm.level`, `lm.source` and `lm.source_revision` say how the file was made, so that it keeps its level
and its origin wherever it is carried. `lm.source_digests` lists the source's files of weights with their digests.

`lm.stop_token_ids` is the list of all token ids that end an answer, because GGUF's own entries can name only three.
`lm.tokenizer` is a `TokenizerNote`, as JSON. `lm.ignored_keys` are the keys of `config.json` that nobody knows, which a
user has accepted to go without. `lm.cut` says what was taken out of a model (`quant/cuts/`), as JSON.
"""

from __future__ import annotations

import json
from typing import Literal

import msgspec

from quant.errors import MalformedFile

VERSION, LEVEL, SOURCE, REVISION = "lm.version", "lm.level", "lm.source", "lm.source_revision"
SOURCE_DIGESTS = "lm.source_digests"
# Bytes of the longest chat template that is converted or run.
MAX_TEMPLATE = 1 << 20
STOPS = "lm.stop_token_ids"
IGNORED = "lm.ignored_keys"
CUT = "lm.cut"
TOKENIZER = "lm.tokenizer"
PLAIN_STEPS = ("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "StripAccents")
"""The normalizers of `tokenizer.json` that have no arguments; a note names them in the same way."""
# The number of arguments of each step. `Prepend`, `Replace` and `Strip` are named as in `tokenizer.json`. `BertClean`
# and `BertAccents` are parts of its `BertNormalizer`; `Collapse` makes one space of several, as SentencePiece does.
ARGUMENTS = {
    **dict.fromkeys(PLAIN_STEPS, 0),
    "Prepend": 1,
    "Replace": 2,
    "Strip": 1,
    "BertClean": 0,
    "BertAccents": 0,
    "Collapse": 0,
}
# Unicode's property White_Space, as the Rust of `tokenizers` has it. Python's `isspace` also has U+001C to U+001F.
WHITE_SPACE = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
)
Space = Literal["", "each", "first", "never"]
"""The stretches of text that get a space in front: each one, only the first, none; "" leaves it to llama.cpp."""


class NotedToken(msgspec.Struct, array_like=True, frozen=True):
    """An added token and its properties, one letter of `flags` for each.

    - `l`, `r`: the token takes the white space to its left, to its right.
    - `w`: the token counts only where it is a word of its own.
    - `n`: the token is searched for in the text after all steps; without `n`, in the text before any step.
    - `s`: the token steers the model, so only templates may write it.
    - `h`: hidden from llama.cpp: the vocabulary of the GGUF file has another text for the token's id.
    """

    id: int
    text: str
    flags: str


class TokenizerNote(msgspec.Struct, omit_defaults=True, frozen=True):
    """The rules of the original tokenizer that llama.cpp does not follow; our runtime does.

    A stretch is the text between two added tokens.

    - `added`: all added tokens.
    - `steps`: the normalization of a text, in order; each step is its name and its arguments.
    - `space`: the stretches that get a space in front if they begin with none.
    - `end`: the id of the token for white space at the end of a stretch, and the characters that count as white space.

    Example: `{"added": [[2, "</s>", "s"]], "steps": [["NFKC"], ["Replace", " ", "▁"]], "space": "first"}`.
    """

    added: list[NotedToken] = []
    steps: list[list[str]] = []
    space: Space = ""
    end: tuple[int, str] | None = None

    def encode(self) -> str:
        """The note as JSON, without empty fields."""
        return json.dumps(msgspec.to_builtins(self), ensure_ascii=False)

    @classmethod
    def decode(cls, text: str | bytes) -> TokenizerNote:
        """The note in this JSON. Raises MalformedFile for an unknown step, and for JSON that is no note."""
        try:
            note = msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError:
            note = None
        if note is None or not all(step and ARGUMENTS.get(step[0]) == len(step) - 1 for step in note.steps):
            raise MalformedFile(f"the entry `{TOKENIZER}` is not valid")
        return note
