"""Text to ids as a model's authors have it, where llama.cpp alone would differ: by what the converter has noted.

GGUF has no place for how added tokens take the white space around them (`lstrip`, `rstrip`), stand alone
(`single_word`) or are looked for in prepared text (`normalized`), nor for the preparation itself (NFC and the like).
The converter notes them as `lm.tokenizer` (`quant/notes.py`); here it is done as `AddedVocabulary` of Hugging Face's
`tokenizers` does it: tokens are cut out of the text as it is, then the rest is prepared and the others are cut out of
that, and what remains goes to llama.cpp. Where nothing is noted, or a text needs nothing of it, llama.cpp reads all.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from quant.notes import WHITE_SPACE, NotedToken, TokenizerNote
from runtime.errors import LoadFailed

# Around what a user has spelled in a prompt: noncharacters, for which no text has a use and which templates pass on.
OPEN, CLOSE = "\ufdd0", "\ufdd1"
MARKS = re.compile(f"[{OPEN}{CLOSE}]")
_CHINESE = re.compile(
    "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002b81f\U0002b920-\U0002ceaf"
    "\U0002f800-\U0002fa1f]"
)
_RUNS = re.compile(" {2,}")
# What SentencePiece's `nmt` rules leave out, and what they take for spaces.
_NMT = dict.fromkeys([*range(1, 9), 11, *range(14, 32), 127, 0x8F, 0x9F], "") | dict.fromkeys(
    map(ord, "\t\n\f\r\u1680\u200b\u200c\u200d\u200e\u200f\u2028\u2029\u2581\ufeff\ufffd"), " "
)
_WORDS = ("L", "M", "Nd", "Nl", "Pc")
# Alphabetic by property, not by category: circled and squared letters; and the joiners.
_WORD = re.compile("[\u200c\u200d\u24b6-\u24e9\U0001f130-\U0001f149\U0001f150-\U0001f169\U0001f170-\U0001f189]")
_FORMS: tuple[Literal["NFC", "NFD", "NFKC", "NFKD"], ...] = ("NFC", "NFD", "NFKC", "NFKD")


class Tokenizer:
    """Reads text by a note; `plain` is llama.cpp's reading of a text in which no control token is looked for."""

    def __init__(self, note: TokenizerNote, vocabulary: int, plain: Callable[[str], array[int]]) -> None:
        """`vocabulary` is the number of tokens. Raises LoadFailed for a note on another vocabulary."""
        ids = [token.id for token in note.added] + ([note.end[0]] if note.end else [])
        if not all(0 <= id < vocabulary for id in ids):
            raise LoadFailed("what lm has noted of this model's tokenizer is not of this model", "pull the model again")
        self._plain = plain
        self.hidden = {token.id: token.text for token in note.added if "h" in token.flags}
        """The texts of tokens that have another in the vocabulary."""
        self._steps, self._space, self._end = note.steps, note.space, note.end
        self._forms = [form for form in _FORMS if [form] in note.steps]
        flagged = any(set(token.flags) & set("lrwh") for token in note.added)
        """Whether every text has to be read here; else only those that the forms of Unicode change, or where control
        tokens are not looked for everywhere."""
        self._always = flagged or bool(note.space or note.end) or len(self._forms) < len(note.steps)
        self._users, self._all = (
            tuple(
                _Cutter(
                    (self.prepare(token.text) if late else token.text, token)
                    for token in note.added
                    if ("n" in token.flags) == late and (everything or "s" not in token.flags)
                )
                for late in (False, True)
            )
            for everything in (False, True)
        )

    def prepare(self, text: str) -> str:
        """A stretch of text after all steps."""
        for name, *arguments in self._steps:
            text = STEPS[name](text, *arguments)
        return text

    def tokenize(self, pieces: Sequence[tuple[str, bool]]) -> array[int] | None:
        """The ids of texts that follow each other, control tokens looked for where the second value says so.

        None where llama.cpp reads them the same.
        """
        special = any(special for _, special in pieces)
        mixed = special and not all(special for _, special in pieces)
        normal = all(unicodedata.is_normalized(form, text) for form in self._forms for text, _ in pieces)
        if normal and not (mixed or self._always):
            return None
        if mixed:
            texts = ((MARKS.sub("\ufffd", text), special) for text, special in pieces)
            whole = "".join(text if special else f"{OPEN}{text}{CLOSE}" for text, special in texts)
        else:
            whole = "".join(text for text, _ in pieces)
        ids = array("i")
        first = True
        for part in self._parts(whole, self._all if special else self._users):
            if isinstance(part, int):
                ids.append(part)
            else:
                text = MARKS.sub("", part) if mixed else part
                ids.extend(self._plain(self._spaced(text, first)))
                if self._end and text.endswith(tuple(self._end[1])):
                    ids.append(self._end[0])
            first = False
        return ids

    def _parts(self, text: str, cutters: tuple[_Cutter, ...]) -> Iterator[int | str]:
        """Added tokens, and the prepared text between them."""
        early, late = cutters
        for part in early.cut(text):
            if isinstance(part, int):
                yield part
            else:
                yield from late.cut(self.prepare(part))

    def _spaced(self, text: str, first: bool) -> str:
        wanted = self._space == "each" or (self._space == "first" and first)
        return f" {text}" if wanted and text and text[0] not in " ▁" else text


class _Cutter:
    """Cuts added tokens out of a text: the leftmost, and of those that begin at one place the longest."""

    def __init__(self, tokens: Iterable[tuple[str, NotedToken]]) -> None:
        self._tokens = {text: token for text, token in tokens if text}
        texts = sorted(self._tokens, key=len, reverse=True)
        spelled = f"{OPEN}[^{CLOSE}]*{CLOSE}"
        self._pattern = re.compile("|".join([spelled, *map(re.escape, texts)])) if texts else None

    def cut(self, text: str) -> Iterator[int | str]:
        """Ids of tokens and the stretches of text between them."""
        done = 0
        for found in self._pattern.finditer(text) if self._pattern else ():
            start, end = found.span()
            token = self._tokens.get(found[0])
            if token is None:  # spelled by a user
                continue
            if "w" in token.flags and not _alone(text, start, end):
                continue
            while "l" in token.flags and start > done and text[start - 1] in WHITE_SPACE:
                start -= 1
            while "r" in token.flags and end < len(text) and text[end] in WHITE_SPACE:
                end += 1
            if done < start:
                yield text[done:start]
            yield token.id
            done = end
        if done < len(text):
            yield text[done:]


def _alone(text: str, start: int, end: int) -> bool:
    """Whether no letter or digit touches what stands there."""
    marked = start > 0 and text[start - 1] == CLOSE
    before = text[max(0, start - 1 - marked) : max(0, start - marked)]
    marked = text.startswith(OPEN, end)
    after = text[end + marked : end + marked + 1]
    return not _is_word(before) and not _is_word(after)


def _is_word(character: str) -> bool:
    """As `\\w` in Unicode's Technical Standard 18."""
    return bool(character) and (
        unicodedata.category(character).startswith(_WORDS) or _WORD.fullmatch(character) is not None
    )


def _lower(text: str) -> str:
    # Letter by letter: a Greek word's last sigma is the same as any other.
    return "".join(map(str.lower, text)) if "Σ" in text else text.lower()


def _without(text: str, kinds: str) -> str:
    return text if text.isascii() else "".join(c for c in text if not unicodedata.category(c).startswith(kinds))


def _clean(text: str) -> str:
    """Without control characters, white space made spaces, and spaces around Chinese characters."""
    kept = (c for c in text if c in "\t\n\r" or not (c == "\ufffd" or unicodedata.category(c) in ("Cc", "Cf", "Co")))
    return _CHINESE.sub(r" \g<0> ", "".join(" " if c in WHITE_SPACE else c for c in kept))


# The steps of `quant/notes.py`.
STEPS: dict[str, Callable[..., str]] = {
    "NFC": lambda text: unicodedata.normalize("NFC", text),
    "NFD": lambda text: unicodedata.normalize("NFD", text),
    "NFKC": lambda text: unicodedata.normalize("NFKC", text),
    "NFKD": lambda text: unicodedata.normalize("NFKD", text),
    "Nmt": lambda text: text.translate(_NMT),
    "Lowercase": _lower,
    "StripAccents": lambda text: _without(text, "M"),
    "BertClean": _clean,
    "BertAccents": lambda text: _without(unicodedata.normalize("NFD", text), "Mn"),
    "Replace": lambda text, old, new: text.replace(old, new),
    "Collapse": lambda text: _RUNS.sub(" ", text),
    "Strip": lambda text, side: text.rstrip(WHITE_SPACE) if side == "right" else text.strip(WHITE_SPACE),
    "Prepend": lambda text, new: new + text if text else text,
}
