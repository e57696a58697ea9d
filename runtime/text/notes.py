"""What the converter has noted in a GGUF file for our runtime: read from its header, before the model is loaded."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import NamedTuple

from quant.errors import MalformedFile
from quant.notes import STOPS, TOKENIZER, TokenizerNote
from runtime.errors import LoadFailed

# GGUF's numbers for kinds of values, and how far into a file its header may reach.
_UINT32, _INT32, _STRING, _ARRAY = 4, 5, 8, 9
_HEADER_LIMIT = 64 << 20


class Notes(NamedTuple):
    """What the converter has noted in a file: ids that end an answer, and what llama.cpp cannot be told of its text."""

    stops: list[int]
    tokenizer: TokenizerNote | None

    @classmethod
    def read(cls, path: Path) -> Notes:
        """From the header of a GGUF file, empty for one that others have made; LoadFailed for a note that is broken.

        llama.cpp gives out no arrays and nothing before a model is loaded, and reading a whole header takes longer than
        loading a small model.
        """
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            at, stops = _HEADER_LIMIT, []
            if found := _find(data, STOPS, _ARRAY, at):
                at, start = found
                kind, count = struct.unpack_from("<IQ", data, start)
                if kind in (_UINT32, _INT32) and start + 12 + 4 * count <= len(data):
                    stops = list(struct.unpack_from(f"<{count}i", data, start + 12))
            # The note stands before the ids, so that it is not looked for among the weights.
            found = _find(data, TOKENIZER, _STRING, at) if stops else None
            if not found:
                return cls(stops, None)
            (size,) = struct.unpack_from("<Q", data, found[1])
            return cls(stops, read_note(data[found[1] + 8 : found[1] + 8 + min(size, at)]))


def read_note(text: bytes) -> TokenizerNote:
    """The note in the entry `lm.tokenizer`; raises LoadFailed for a broken one."""
    try:
        return TokenizerNote.decode(text)
    except MalformedFile:
        raise LoadFailed("what lm has noted of this model's tokenizer is broken", "pull the model again") from None


def _find(data: mmap.mmap, key: str, kind: int, end: int) -> tuple[int, int] | None:
    """Where an entry of that kind begins, and where its value does."""
    named = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind)
    at = data.find(named, 0, end)
    return None if at < 0 or at + len(named) + 12 > len(data) else (at, at + len(named))
