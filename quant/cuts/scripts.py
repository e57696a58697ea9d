"""Scripts: which characters texts of some languages have, and which bytes can be a part of such a text.

A character that is no letter and no mark belongs to every script: digits, punctuation, symbols, white space. So do the
letters of ASCII, because code and names have them everywhere. The script of a letter is told by its name in Unicode,
whose first word it is; Python's `unicodedata` has names, and no scripts.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cached_property
from itertools import chain

# Characters of more than one byte, but for planes in which there are none yet.
_LONG = (range(0x80, 0xD800), range(0xE000, 0x33480), range(0xE0000, 0xE01F0))
# The first words of the names of marks that go with letters of any script, and with symbols.
_MARKS = ("COMBINING", "VARIATION")
# The first words of the names of a script's letters.
SCRIPTS: dict[str, tuple[str, ...]] = {
    "latin": ("LATIN",),
    "cyrillic": ("CYRILLIC",),
    "greek": ("GREEK",),
    "hebrew": ("HEBREW",),
    "arabic": ("ARABIC",),
    "armenian": ("ARMENIAN",),
    "georgian": ("GEORGIAN",),
    "devanagari": ("DEVANAGARI",),
    "bengali": ("BENGALI",),
    "tamil": ("TAMIL",),
    "telugu": ("TELUGU",),
    "thai": ("THAI",),
    "han": ("CJK", "BOPOMOFO"),
    "japanese": ("CJK", "HIRAGANA", "KATAKANA", "HIRAGANA-KATAKANA"),
    "hangul": ("HANGUL",),
}
# The languages, by ISO 639-1, that are written in a script.
_WRITTEN_IN = {
    "latin": "en de fr es it pt nl sv da no nb nn fi is pl cs sk sl hr ro hu et lv lt tr vi id ms sw eu ca gl ga af sq",
    "cyrillic": "ru uk be bg sr mk kk",
    "greek": "el",
    "hebrew": "he",
    "arabic": "ar fa ur",
    "armenian": "hy",
    "georgian": "ka",
    "devanagari": "hi mr ne",
    "bengali": "bn",
    "tamil": "ta",
    "telugu": "te",
    "thai": "th",
    "han": "zh",
    "japanese": "ja",
    "hangul": "ko",
}
LANGUAGES = {language: script for script, languages in _WRITTEN_IN.items() for language in languages.split()}


def script_of(name: str) -> str | None:
    """The script that a language's code or a script's name means; None for any other word."""
    name = name.strip().lower()
    return LANGUAGES.get(name, name if name in SCRIPTS else None)


class Scripts:
    """The characters of some scripts: `SCRIPTS` has their names."""

    def __init__(self, names: Iterable[str]) -> None:
        self._prefixes = {word for name in names for word in SCRIPTS[name]}
        self._known: dict[str, bool] = {}

    def has(self, text: str) -> bool:
        """Whether every character of a text is one of these scripts, or of all."""
        return all(self._has(character) for character in text)

    def _has(self, character: str) -> bool:
        known = self._known.get(character)
        if known is None:
            known = self._known[character] = self._belongs(character)
        return known

    def _belongs(self, character: str) -> bool:
        category = unicodedata.category(character)
        if character.isascii() or category[0] not in "LMC":
            return True
        if category[0] == "C":  # controls and joiners have no name; private and unassigned characters are no text
            return category in ("Cc", "Cf")
        name = unicodedata.name(character, "").split(" ", 1)[0]
        return name in self._prefixes or name in _MARKS or (ord(character) < 0x100 and "LATIN" in self._prefixes)

    def has_bytes(self, data: bytes) -> bool:
        """Whether bytes can lie within a text of these scripts; a character may be cut at their begin and their end."""
        head = next((at for at, byte in enumerate(data) if byte & 0xC0 != 0x80), len(data))
        if head == len(data):
            return data in self._pieces
        tail = max(at for at, byte in enumerate(data) if byte & 0xC0 != 0x80)
        end = len(data) if tail + _length(data[tail]) == len(data) else tail
        try:
            whole = data[head:end].decode()
        except UnicodeDecodeError:
            return False
        return self.has(whole) and all(not cut or cut in self._pieces for cut in (data[:head], data[end:]))

    @cached_property
    def _pieces(self) -> set[bytes]:
        """Parts of the UTF-8 of every character that are shorter than it."""
        pieces: set[bytes] = set()
        for data in (chr(code).encode() for code in chain(*_LONG) if self._belongs(chr(code))):
            pieces.update(
                data[start:end]
                for start in range(len(data))
                for end in range(start + 1, len(data) + 1)
                if end - start < len(data)
            )
        return pieces


def _length(lead: int) -> int:
    """The bytes of a character in UTF-8 by its first one; 1 where no character begins with it."""
    return 1 + (lead >= 0xC0) + (lead >= 0xE0) + (lead >= 0xF0)
