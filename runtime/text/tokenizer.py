"""Text to token ids as the model's original tokenizer does it, where llama.cpp alone would do it otherwise.

GGUF has no field for the rules of added tokens: whether they take the white space around them (`lstrip`, `rstrip`),
must stand alone (`single_word`), or are searched in the normalized text (`normalized`). Nor has it one for the
normalizer itself (NFC and the like). The converter writes both into the entry `lm.tokenizer` (`quant/notes.py`).

The algorithm is `AddedVocabulary` of Hugging Face's `tokenizers`. Added tokens that are not `normalized` are cut
out of the text as it is. The stretches between them are normalized, and the other added tokens are cut out of
those. The rest goes to llama.cpp, as does the whole text where the file has no note or the text needs none of this.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from quant.notes import WHITE_SPACE, NotedToken, TokenizerNote
from runtime.errors import LoadFailed

# Put around a control token that a user has spelled in a prompt. They are Unicode noncharacters, which no text needs
# and chat templates pass on.
OPEN, CLOSE = "\ufdd0", "\ufdd1"
MARKERS = re.compile(f"[{OPEN}{CLOSE}]")
_CHINESE = re.compile(
    "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002b81f\U0002b920-\U0002ceaf"
    "\U0002f800-\U0002fa1f]"
)
_RUNS = re.compile(" {2,}")
# SentencePiece's `nmt` rules: characters that are dropped, and characters that become spaces.
_NMT = dict.fromkeys([*range(1, 9), 11, *range(14, 32), 127, 0x8F, 0x9F], "") | dict.fromkeys(
    map(ord, "\t\n\f\r\u1680\u200b\u200c\u200d\u200e\u200f\u2028\u2029\u2581\ufeff\ufffd"), " "
)
# Unicode categories of word characters, by their first letters. Circled and squared letters are alphabetic by property
# and not by category; the joiners count as well.
_WORDS = ("L", "M", "Nd", "Nl", "Pc")
_WORD = re.compile("[\u200c\u200d\u24b6-\u24e9\U0001f130-\U0001f149\U0001f150-\U0001f169\U0001f170-\U0001f189]")
_FORMS: tuple[Literal["NFC", "NFD", "NFKC", "NFKD"], ...] = ("NFC", "NFD", "NFKC", "NFKD")


class Tokenizer:
    """Tokenizes by a note. `plain` is llama.cpp's tokenizer of a text whose control tokens are not parsed."""

    def __init__(self, note: TokenizerNote, vocabulary: int, plain: Callable[[str], array[int]]) -> None:
        """`vocabulary` is the number of tokens. Raises LoadFailed for a note on another vocabulary."""
        ids = [token.id for token in note.added] + ([note.end[0]] if note.end else [])
        if not all(0 <= id < vocabulary for id in ids):
            raise LoadFailed(
                "the note on the tokenizer in the model's file belongs to another model", "pull the model again"
            )
        self._plain = plain
        self.hidden = {token.id: token.text for token in note.added if "h" in token.flags}
        """The texts of tokens that have another text in the vocabulary, by id."""
        self._steps, self._space, self._end = note.steps, note.space, note.end
        self._forms = [form for form in _FORMS if [form] in note.steps]
        flagged = any(set(token.flags) & set("lrwh") for token in note.added)
        # Whether every text is tokenized here. Otherwise llama.cpp tokenizes all texts but two kinds: texts that a
        # Unicode form changes, and prompts that parse control tokens in some parts only.
        self._always = flagged or bool(note.space or note.end) or len(self._forms) < len(note.steps)
        # `_users` cuts out the tokens that users may write, `_all` all tokens. Both are pairs: the first cutter works
        # on the text as it is, the second on the normalized text.
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
        """The text after all steps of the normalizer."""
        for name, *arguments in self._steps:
            text = STEPS[name](text, *arguments)
        return text

    def tokenize(self, parts: Sequence[tuple[str, bool]]) -> array[int] | None:
        """The ids of consecutive texts, each with whether control tokens are parsed in it.

        None where llama.cpp gives the same.
        """
        special = any(special for _, special in parts)
        mixed = special and not all(special for _, special in parts)
        normal = all(unicodedata.is_normalized(form, text) for form in self._forms for text, _ in parts)
        if normal and not (mixed or self._always):
            return None
        if mixed:
            texts = ((MARKERS.sub("\ufffd", text), special) for text, special in parts)
            whole = "".join(text if special else f"{OPEN}{text}{CLOSE}" for text, special in texts)
        else:
            whole = "".join(text for text, _ in parts)
        ids = array("i")
        first = True
        for part in self._parts(whole, self._all if special else self._users):
            if isinstance(part, int):
                ids.append(part)
            else:
                text = MARKERS.sub("", part) if mixed else part
                ids.extend(self._plain(self._spaced(text, first)))
                if self._end and text.endswith(tuple(self._end[1])):
                    ids.append(self._end[0])
            first = False
        return ids

    def _parts(self, text: str, cutters: tuple[_Cutter, ...]) -> Iterator[int | str]:
        """Ids of added tokens, and the normalized text between them."""
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
    """Cuts added tokens out of a text: the leftmost first, and the longest where several begin at one character."""

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
            if token is None:  # between markers: a control token that a user has spelled stays text
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
    """Whether no letter or digit touches `text[start:end]`, markers aside."""
    marked = start > 0 and text[start - 1] == CLOSE
    before = text[max(0, start - 1 - marked) : max(0, start - marked)]
    marked = text.startswith(OPEN, end)
    after = text[end + marked : end + marked + 1]
    return not _is_word(before) and not _is_word(after)


def _is_word(character: str) -> bool:
    """Whether Unicode's Technical Standard 18 counts a character as `\\w`."""
    return bool(character) and (
        unicodedata.category(character).startswith(_WORDS) or _WORD.fullmatch(character) is not None
    )


def _lower(text: str) -> str:
    # Python lowers the last sigma of a Greek word to ς. The original does not, nor does Python letter by letter.
    return "".join(map(str.lower, text)) if "Σ" in text else text.lower()


def _without(text: str, kinds: str) -> str:
    return text if text.isascii() else "".join(c for c in text if not unicodedata.category(c).startswith(kinds))


def _clean(text: str) -> str:
    """Without control characters, white space made spaces, and spaces around Chinese characters."""
    letters = (c for c in text if c in "\t\n\r" or not (c == "\ufffd" or unicodedata.category(c) in ("Cc", "Cf", "Co")))
    return _CHINESE.sub(r" \g<0> ", "".join(" " if c in WHITE_SPACE else c for c in letters))


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
