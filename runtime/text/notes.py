"""The converter's notes in a GGUF file (`quant/notes.py`), read from its header before the model is loaded.

llama.cpp gives no access to arrays, and no access at all before a model is loaded. Parsing a whole header takes longer
than loading a small model. So the two entries are found by searching the file's start for their keys.
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
    """`stops` are all token ids that end an answer; `tokenizer` is None where llama.cpp tokenizes as the original."""

    stops: list[int]
    tokenizer: TokenizerNote | None

    @classmethod
    def read(cls, path: Path) -> Notes:
        """The notes in a GGUF file, empty for a file that others have made; raises LoadFailed for a broken one."""
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            end, stops = _HEADER_LIMIT, []
            if place := _find(data, STOPS, _ARRAY, end):
                end, start = place
                kind, count = struct.unpack_from("<IQ", data, start)
                if kind in (_UINT32, _INT32) and start + 12 + 4 * count <= len(data):
                    stops = list(struct.unpack_from(f"<{count}i", data, start + 12))
            # The converter writes the tokenizer's entry before the ids, so its search ends there, not in the weights.
            place = _find(data, TOKENIZER, _STRING, end) if stops else None
            if not place:
                return cls(stops, None)
            (size,) = struct.unpack_from("<Q", data, place[1])
            return cls(stops, read_note(data[place[1] + 8 : place[1] + 8 + min(size, end)]))


def read_note(text: bytes) -> TokenizerNote:
    """The value of the entry `lm.tokenizer`; raises LoadFailed for a broken one."""
    try:
        return TokenizerNote.decode(text)
    except MalformedFile:
        raise LoadFailed("the note on the tokenizer in the model's file is broken", "pull the model again") from None


def _find(data: mmap.mmap, key: str, kind: int, end: int) -> tuple[int, int] | None:
    """The offsets of an entry and of its value in `data`, if it begins before `end`; `kind` is its GGUF type."""
    start = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind)
    at = data.find(start, 0, end)
    return None if at < 0 or at + len(start) + 12 > len(data) else (at, at + len(start))
