"""Words of names: which are safe as names of files, how any text becomes one, and the one spelling of a level.

`registry/names.py` makes names of them.
"""

from __future__ import annotations

import re
import unicodedata

from registry.errors import BadName

AUTO = "auto"

_ENGLISH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
# Letters, and bytes in UTF-8: a file system allows 255 bytes, of which a temporary file takes some.
_LONGEST_WORD, _LONGEST_FILE = 96, 240
_BUDGET = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,4})?)(KB|MB|GB|TB|KiB|MiB|GiB|TiB|bpw)", re.IGNORECASE)
_UNITS = {unit.lower(): unit for unit in ("KB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB", "bpw")}
_EXAMPLES = "names look like `demo`, `org/repo`, `hf.co/org/repo:Q4_K_M` or `./folder`"
_LEVELS = "levels look like `Q4_K_M`, `4GB` or `4.5bpw`; `lm fit NAME --all` lists those with names"


def canonical_level(text: str) -> str:
    """A level in its one spelling: `q4_k_m` → `Q4_K_M`, `4gb` → `4GB`, `4.0bpw` → `4bpw`, `AUTO` → `auto`.

    File names stay as they are.

    Raises BadName.
    """
    budget = _BUDGET.fullmatch(text)
    if budget:
        whole, point, part = budget[1].partition(".")
        return (whole.lstrip("0") or "0") + (point + part).rstrip("0").rstrip(".") + _UNITS[budget[2].lower()]
    if text.lower().endswith(".gguf") and is_word(text):
        return text
    if not _ENGLISH.fullmatch(text) or ".." in text:
        raise bad_name(text, _LEVELS, "a level")
    return AUTO if text.lower() == AUTO else text.upper()


def word_of(text: str) -> str:
    """A text as a word of a name: letters and digits of any script and `_.-` stay; "" where there are none.

    A Latin letter with marks becomes the bare letter (`ünï` is `uni`), anything else a hyphen. The word may be longer
    than a name allows.
    """
    letters = "".join(map(_plain, unicodedata.normalize("NFKC", text)))
    word = re.sub(r"\.{2,}", ".", re.sub(r"\0+", "-", letters)).strip("-.")
    while word and unicodedata.category(word[0]).startswith("M"):
        word = word[1:].lstrip("-.")
    return unicodedata.normalize("NFC", word)


def _plain(letter: str) -> str:
    """The letter as names have it; a NUL for one that they have not, nothing for a mark on a Latin letter."""
    if "\u0300" <= letter <= "\u036f":
        return ""
    base = unicodedata.normalize("NFD", letter)[0]
    letter = base if base.isascii() and base.isalpha() else letter
    return letter if _may_be_in_word(letter) else "\0"


def _may_be_in_word(letter: str) -> bool:
    return letter in "_.-" or letter.isalnum() or unicodedata.category(letter).startswith("M")


def is_word(text: str) -> bool:
    """Whether a text is safe as the name of a file, and reads in one way only."""
    if not 0 < len(text) <= _LONGEST_WORD or ".." in text or len(text.encode(errors="replace")) > _LONGEST_FILE:
        return False
    good = all(map(_may_be_in_word, text)) and (text[0] == "_" or text[0].isalnum())
    return good and unicodedata.is_normalized("NFC", text)


def short_word(word: str, longest: int = _LONGEST_WORD) -> str:
    """The beginning of a word, as much of it as a name may have."""
    word = word[:longest]
    while len(word.encode()) > _LONGEST_FILE - _LONGEST_WORD + longest:
        word = word[:-1]
    return word.rstrip("-.")


def package_word(distribution: str) -> str:
    """The bare word for the model of a package: plugins of `llm` are called `llm-MODEL`."""
    return distribution.removeprefix("llm-") or distribution


def bad_name(text: str, hint: str = _EXAMPLES, kind: str = "a name of a model") -> BadName:
    """The error of a text that is not what `kind` says, shown as far as a terminal may have it."""
    shown = text if len(text) <= 80 else f"{text[:79]}…"
    plain = shown if shown.isprintable() else shown.encode("unicode_escape").decode()
    return BadName(f"`{plain}` is not {kind}", hint)
