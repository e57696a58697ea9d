"""Names of GGUF files: which files hold a model, and which are parts of a split one, in upper case or lower.

`tools/gguf-split` of llama.cpp names the parts of a split file `MODEL-00001-of-00003.gguf`, numbers from 1.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_NAME = re.compile(r"(.+?)(?:-(\d{5})-of-(\d{5}))?(\.gguf)", re.IGNORECASE)
# A file `mtp-…` holds the layers that guess further tokens, for speculation beside the model of that name.
_NO_MODEL = re.compile(r"(?:.*[._/-])?(?:mmproj|imatrix|ggml-vocab)(?:[._-].*)?|(?:.*/)?mtp-.*", re.IGNORECASE)


class GgufName(NamedTuple):
    """The name of a model's file, taken apart: `stem`, part `number` of `parts`, and the `ending` as it is spelled.

    A file that is not split is part 1 of 0 `parts`.
    """

    stem: str
    number: int
    parts: int
    ending: str

    @classmethod
    def of(cls, path: str) -> GgufName | None:
        """The name in a path of at most one folder, None where the file holds no model."""
        found = _NAME.fullmatch(path)
        if not found or path.count("/") > 1 or _NO_MODEL.fullmatch(found[1]):
            return None
        return cls(found[1], int(found[2] or 1), int(found[3] or 0), found[4])

    def part(self, number: int) -> str:
        """The path of part `number` of the same split file."""
        return f"{self.stem}-{number:05}-of-{self.parts:05}{self.ending}"
