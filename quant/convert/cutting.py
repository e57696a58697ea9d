"""The ways in which llama.cpp cuts text into words before merges apply, by rules as in `tokenizer.json`.

`llm_tokenizer_bpe` in llama-vocab.cpp knows them by names, often several for the same; here each stands once.
"""

from __future__ import annotations

from typing import NamedTuple

_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LLAMA3 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_MINICPM5 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_SEED = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
_WORDS = r" ?[^(\s|.,!?…。，、।۔،)]+"
_BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_EXAONE = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_TURKISH = rf"{_LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_JAIS = (
    rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+"
    + "".join(rf"|\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4, "1,2"))
    + r"|\s{1}"
)
_JAPANESE = "[一-龥぀-ゟ゠-ヿ]+"
_ASIAN = "[一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+"


class Pre(NamedTuple):
    """A routine of llama.cpp: its name, the rules it follows, whether words that are in the vocabulary skip merges."""

    name: str
    rules: tuple[str, ...]
    ignore_merges: bool = False


KNOWN = (
    Pre("gpt-2", ("gpt2",)),
    Pre("smollm", ("digit", "gpt2")),
    Pre("llama-bpe", (_LLAMA3,), ignore_merges=True),
    Pre("smaug-bpe", (_LLAMA3,)),
    Pre("qwen2", (_QWEN2,)),
    Pre("qwen35", (_QWEN35,)),
    Pre("tekken", (_TEKKEN,), ignore_merges=True),
    Pre("gpt-4o", (_GPT4O,)),
    Pre("minicpm5", (r"\p{N}{1,3}", _MINICPM5), ignore_merges=True),
    Pre("seed-coder", (_SEED,)),
    Pre("deepseek-coder", (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", "digit")),
    Pre("deepseek-v3", (r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3)),
    Pre("bloom", (_WORDS,)),
    Pre("viking", (_WORDS, "digit")),
    Pre("falcon", (r"[\p{P}\$\+<=>\^~\|`]+", "gpt2", "[0-9][0-9][0-9]")),
    Pre("exaone-moe", (_EXAONE,)),
    Pre("ufakzeka", (_TURKISH,)),
    Pre("laguna", (r"[^\n]+|[\n]+", _QWEN2)),
    Pre("jais-2", (_JAIS,)),
    Pre("spark2_5", (r"\p{N}{1,3}", _JAPANESE, _ASIAN, _DEEPSEEK3)),
    Pre("tiny_aya", (r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O)),
    Pre("superbpe", (r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
)
