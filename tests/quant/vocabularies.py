"""Tokenizers made on the spot, the strings to try them with, and where llama.cpp itself differs from the originals."""

from __future__ import annotations

import json
import re
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from quant.convert.tokenizer import pretokenizer
from quant.convert.tokenizer.cutting import Pre
from quant.gguf.writer import encode_header
from tests.quant.support import ROOT

NASTY = (
    "Once upon a time,  there   was\ta cat.\n\n\n It's   Alice's; I'LL we've THEY'RE don't!!??...\r\n"
    "1 22 333 4444 55555 3.14159 1,000,000 ٣٤٥ ½ Ⅷ x² \u00a0\u2003wide \u200bzero "
    "naïve façade Ünïcödé ÀÉÎ е́ Привет мир Ελληνικά 日本語テスト 我想在apple工作 한국어 ไทย עברית العربية "
    "ភាសាខ្មែរ កាន់តែពិសេសអាច😁 हिन्दी বাংলা "
    "🚀 👩‍👩‍👧 🏳️‍🌈 e\u0301 <|im_end|> <|endoftext|x> </s> \\n {}[]()<>=+-*/ _under_score camelCase ABCdefGHI "
    "for (int i = 0; i < n; ++i) {\n\t\tx[i] += f(i) ? 0x1F : 1e-9; // why?\n\t}\n"
    "\x01\x7f\ufeff\U0001f9ff\ud7ff   trailing   "
)
PLAIN = "Once upon a time, there was a cat. It's 3 o'clock, I'LL go 1234567 times!\n\n  And   then?\r\n ok"
# A text that never changes: other words would train other vocabularies, and other ties between equally likely pieces.
CORPUS = [PLAIN, NASTY, *(ROOT / "tests" / "prose.txt").read_text().splitlines()]


def vocabulary_file(path: Path, entries: dict[str, Any]) -> Path:
    """A GGUF that holds a vocabulary and nothing else."""
    with path.open("wb") as file:
        file.write(encode_header({"general.architecture": "llama", **entries}, ()))
    return path


@cache
def _seamless(size: int) -> str:
    """Byte-level merges over everything that a rule may cut, so that a cut that is missing shows, and one too many."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=1, initial_alphabet=alphabet, max_token_length=24)
    tokenizer.train_from_iterator([NASTY, PLAIN, *pretokenizer.HARD], trainer)
    return tokenizer.to_str()


@cache
def _trained(rules: str, size: int) -> str:
    """Byte-level merges as its authors would have trained them, within the words that the rules cut."""
    tokenizer = Tokenizer.from_str(_seamless(size))
    step = {**json.loads(tokenizer.to_str()), "pre_tokenizer": json.loads(rules)}
    tokenizer.pre_tokenizer = Tokenizer.from_str(json.dumps(step)).pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.model = models.BPE()
    trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=1, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([*CORPUS, *pretokenizer.HARD], trainer)
    return tokenizer.to_str()


def byte_level(pre: Pre, size: int = 2_000, seamless: bool = True) -> dict[str, Any]:
    """A `tokenizer.json` of `size` tokens that cuts by the published rules of `pre`."""
    step = pretokenizer.step_of(pre)
    made: dict[str, Any] = json.loads(_seamless(size) if seamless else _trained(json.dumps(step), size))
    made["pre_tokenizer"] = step
    made["model"]["ignore_merges"] = pre.ignore_merges
    return made


# Letters of scripts, marks, numbers, spaces, line breaks, code, joiners, and any other character.
ANY = st.characters(codec="utf-8", exclude_categories=("Cs", "Cn", "Co"))
PIECES = st.sampled_from(pretokenizer.PIECES)
TEXTS = st.lists(PIECES | st.text(ANY, min_size=1, max_size=3), max_size=12).map("".join)
# The same from a choice of characters, which takes no seconds to begin with.
FEW = st.sampled_from([chr(code) for code in range(33, 0x1FA00, 61) if unicodedata.category(chr(code))[1] not in "sno"])
QUICK_TEXTS = st.lists(PIECES | FEW, max_size=12).map("".join)


def kinds(text: str) -> str:
    """A letter for each character: what rules tell apart. Small letters are outside of ASCII."""
    return "".join(map(_kind, text))


def _kind(character: str) -> str:
    plain, category = character.isascii(), unicodedata.category(character)
    if character in "\r\n":
        return "N"
    if "\u2e80" <= character < "\u2fe0" or "\u3021" <= character < "\u303c":
        return "h"
    if character.isspace() or character in "\x1c\x1d\x1e\x1f":
        return "S" if plain else "s"
    if category in ("Lu", "Lt"):
        return "U" if plain else "u"
    if category == "Ll":
        return "L" if plain else "l"
    return {"L": "o", "M": "m", "N": "D" if plain else "d", "P": "P" if plain else "p", "S": "P" if plain else "p"}.get(
        category[0], "C" if plain else "c"
    )


# Where llama.cpp's routines cut otherwise than the rules that they were made after, by `kinds`, with the shortest text.
# The cause is the same for most: its regular expressions see one letter in place of every letter outside of ASCII.
_MARK = "m"  # "é" of two characters: letter and mark are two words
_CASE = "[Llom]u|l[om]*U|u[Uuom]*U"  # "éЖ" is one word, "ЖA" two
_NO_CASE = "[Llom][uU]"  # "aB" is one word
_WIDE_SPACE = "s"  # U+3000, which is also in a range of letters
LIMITS: dict[str, str] = {
    "tekken": f"{_MARK}|{_CASE}",
    "gpt-4o": f"{_MARK}|{_CASE}",
    "granite-embed-multi-97m": _CASE,
    "youtu": _NO_CASE,
    # Radicals and counting rods are Chinese, and no letters.
    "kimi-k2": f"{_MARK}|{_NO_CASE}|h",
    # "5555a": digits go by threes only before a border of a word. "  3", "\x013": as for afmoe.
    "tiny_aya": f"{_NO_CASE}|[Dd]{{4,}}[LUluomP]|(?=D*d)[Dd]{{2}}|[Ss][Ss]+[Dd]|[Cc][Dd]",
    # "  3" is two spaces and a digit, in the original one of two spaces; "\x013" is one word.
    "afmoe": "[Ss][Ss]+[Dd]|[Cc][Dd]",
    "deepseek-llm": _WIDE_SPACE,
    "deepseek-coder": _WIDE_SPACE,
    # "111½": any number counts as a digit.
    "superbpe": "(?=[Dd]{3})D*d",
}


def follows(name: str, text: str) -> bool:
    """Whether llama.cpp's routine is one with the published rules on this text, as far as is known."""
    return name not in LIMITS or not re.search(LIMITS[name], kinds(text))
