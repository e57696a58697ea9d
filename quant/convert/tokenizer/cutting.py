"""The pre-tokenizers of llama.cpp, each as the rules by which `tokenizer.json` cuts a text into words in the same way.

Source: `llm_tokenizer_bpe` in llama-vocab.cpp, which has one or several names for each.
"""

from __future__ import annotations

from typing import NamedTuple

_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
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
_HAN = "[一-龥぀-ゟ゠-ヿ]+"
_ASIAN = "[一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+"
_MARKS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"
_DEEPSEEK3 = rf"{_MARKS}[\r\n]*|{_SPACES}"
_SPARK = rf"{_MARKS}|[\r\n]|\s+(?!\S)|\s+"
_FOREIGN = r"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+"
_YOUTU = _GPT4O.replace(r"\p{N}{1,3}", r"\p{N}")
# Letters with case, as published.
_CASED = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕ"
    "Ἐ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤ"
    "Ⳬ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_CHINESE = "[一-龥ࠀ-一가-퟿]+"
_KIMI_UPPER, _KIMI_LOWER = (rf"[{kinds[1:-1]}&&[^\p{{Han}}]]" for kinds in (_UPPER, _LOWER))
_KIMI = (
    rf"[\p{{Han}}]+|[^\r\n\p{{L}}\p{{N}}]?{_KIMI_UPPER}*{_KIMI_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_KIMI_UPPER}+{_KIMI_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_BY_THREES = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"


class Pre(NamedTuple):
    """A routine of llama.cpp: its name, and the rules of `tokenizer.json` that cut as it does.

    A rule is a regular expression whose matches are words, or `gpt2` (the expression of `ByteLevel`), or `digit` (every
    digit by itself). `ignore_merges`: words that are in the vocabulary become one token, whatever the merges. `others`:
    more names of the same routine, with spaces between.
    """

    name: str
    rules: tuple[str, ...]
    ignore_merges: bool = False
    others: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """All its names in llama.cpp."""
        return self.name, *self.others.split()


KNOWN = (
    Pre(
        "gpt-2",
        ("gpt2",),
        others="phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat a.x-4.0 mellum modern-bert jina-es "
        "jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe",
    ),
    Pre("smollm", ("digit", "gpt2"), others="starcoder refact command-r codeshell exaone minerva-7b mellum2"),
    Pre(
        "llama-bpe",
        (_LLAMA3,),
        ignore_merges=True,
        others="llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano glm4 glm5",
    ),
    Pre("smaug-bpe", (_LLAMA3,), others="dbrx chatglm-bpe"),
    Pre("qwen2", (_QWEN2,), others="stablelm2 megrez deepseek-r1-qwen kormo f2llmv2 hunyuan solar-open grok-2"),
    Pre("qwen35", (_QWEN35,)),
    Pre("tekken", (_TEKKEN,), ignore_merges=True),
    Pre("gpt-4o", (_GPT4O,), others="llama4 kanana2 talkie minimax-m2"),
    Pre("granite-embed-multi-97m", (_GPT4O,), ignore_merges=True),
    Pre("minicpm5", (r"\p{N}{1,3}", _MINICPM5), ignore_merges=True),
    Pre("seed-coder", (_SEED,)),
    Pre(
        "deepseek-llm", (r"[\r\n]", rf"\s?[{_CASED}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _CHINESE, r"\p{N}+")
    ),
    Pre("deepseek-coder", (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CHINESE, "digit")),
    Pre("deepseek-v3", (r"\p{N}{1,3}", _HAN, _DEEPSEEK3), others="hunyuan-dense joyai-llm hy_v4"),
    Pre("spark2_5", (r"\p{N}{1,3}", _HAN, _SPARK, "digit")),
    Pre("afmoe", (_BY_THREES, _ASIAN, _DEEPSEEK3)),
    Pre("youtu", (_FOREIGN, _YOUTU), ignore_merges=True),
    Pre("kimi-k2", (_KIMI,)),
    Pre("bloom", (_WORDS,), others="poro-chat gpt3-finnish"),
    Pre("viking", (_WORDS, "digit")),
    Pre("falcon", (r"[\p{P}\$\+<=>\^~\|`]+", "gpt2", "[0-9][0-9][0-9]")),
    Pre("default", (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    Pre("bailingmoe", (_BAILING,), others="bailingmoe2 llada-moe"),
    Pre("exaone-moe", (_EXAONE,)),
    Pre("ufakzeka", (_TURKISH,)),
    Pre("laguna", (r"[^\n]+|[\n]+", _QWEN2)),
    Pre("jais-2", (_JAIS,)),
    Pre("tiny_aya", (r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O), others="cohere2moe"),
    Pre("superbpe", (r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    Pre(
        "chameleon",
        (
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            "digit",
            r"[\p{P}!-/:-@\[-`{-~]",
            "gpt2",
        ),
    ),
)
