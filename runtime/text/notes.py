"""The converter's notes in a GGUF file (`quant/notes.py`), read from its header before the model is loaded.

llama.cpp gives out no arrays, and nothing before a model is loaded. Parsing a whole header takes longer than loading a
small model. So the two entries are found by searching the file's start for their keys.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import NamedTuple

from quant.errors import MalformedFile
from quant.notes import STOPS, TOKENIZER, TokenizerNote
from runtime.errors import LoadFailed

# GGUF's types of values.
_UINT32, _INT32, _STRING, _ARRAY = 4, 5, 8, 9
# How far into a file its header may reach, in bytes.
_HEADER_LIMIT = 64 << 20


class Notes(NamedTuple):
    """`stops` are all token ids that end an answer; `tokenizer` is None where llama.cpp reads texts as the original."""

    stops: list[int]
    tokenizer: TokenizerNote | None

    @classmethod
    def read(cls, path: Path) -> Notes:
        """The notes in a GGUF file, empty for a file that others have made; raises LoadFailed for a broken one."""
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            at, stops = _HEADER_LIMIT, []
            if found := _find(data, STOPS, _ARRAY, at):
                at, start = found
                kind, count = struct.unpack_from("<IQ", data, start)
                if kind in (_UINT32, _INT32) and start + 12 + 4 * count <= len(data):
                    stops = list(struct.unpack_from(f"<{count}i", data, start + 12))
            # The converter writes the tokenizer's entry before the ids, so its search ends there, not in the weights.
            found = _find(data, TOKENIZER, _STRING, at) if stops else None
            if not found:
                return cls(stops, None)
            (size,) = struct.unpack_from("<Q", data, found[1])
            return cls(stops, read_note(data[found[1] + 8 : found[1] + 8 + min(size, at)]))


def read_note(text: bytes) -> TokenizerNote:
    """The value of the entry `lm.tokenizer`; raises LoadFailed for a broken one."""
    try:
        return TokenizerNote.decode(text)
    except MalformedFile:
        raise LoadFailed("what lm has noted of this model's tokenizer is broken", "pull the model again") from None


def _find(data: mmap.mmap, key: str, kind: int, end: int) -> tuple[int, int] | None:
    """The offsets of an entry and of its value in `data`, if it begins before `end`; `kind` is its GGUF type."""
    named = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind)
    at = data.find(named, 0, end)
    return None if at < 0 or at + len(named) + 12 > len(data) else (at, at + len(named))
