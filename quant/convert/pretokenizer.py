"""Recognises how a tokenizer cuts text into words before its merges apply.

`tokenizer.json` says it by rules, llama.cpp by the name of a routine of its own (`llm_tokenizer_bpe` in
llama-vocab.cpp). A name is given only where the rules are the same to the letter; nothing is guessed, since a wrong
name costs quality and no error tells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from quant.errors import MalformedFile, UnsupportedModel

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


class Pre(NamedTuple):
    """A routine of llama.cpp: its name, the rules it follows, whether words that are in the vocabulary skip merges."""

    name: str
    rules: tuple[str, ...]
    ignore_merges: bool = False


_KNOWN = (
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
)
NAMES = tuple(pre.name for pre in _KNOWN)
_HINT = f"if you know which routine of llama.cpp it needs, name it with `--pre` ({', '.join(NAMES)})"


def recognise(tokenizer: dict[str, Any], same_either_way: Callable[[], bool]) -> str:
    """The name of llama.cpp's routine for a byte-level `tokenizer.json`; UnsupportedModel where none is the same.

    `same_either_way` tells whether it makes no difference to this vocabulary if whole words skip the merges; it is
    asked only when llama.cpp's routine does the other thing than the tokenizer.
    """
    if not _is_neutral(tokenizer.get("normalizer")):
        raise UnsupportedModel(
            "its tokenizer changes the text before cutting it, which llama.cpp cannot do", hint=_HINT
        )
    rules = tuple(_flatten(tokenizer.get("pre_tokenizer")))
    fitting = [pre for pre in _KNOWN if pre.rules == rules]
    if not fitting:
        raise UnsupportedModel("its tokenizer cuts text into words in a way that is not known here", hint=_HINT)
    ignore = bool(tokenizer["model"].get("ignore_merges"))
    for pre in fitting:
        if pre.ignore_merges == ignore:
            return pre.name
    if same_either_way():
        return fitting[0].name
    raise UnsupportedModel(f"its tokenizer differs from `{fitting[0].name}` in `ignore_merges`", hint=_HINT)


def check_name(name: str) -> str:
    """A name given by the user; UnsupportedModel lists those there are."""
    if name not in NAMES:
        raise UnsupportedModel(f"there is no pre-tokenizer `{name}`", hint="there are " + ", ".join(NAMES))
    return name


def listed(step: dict[str, Any], key: str) -> list[Any]:
    """The parts of a step of `tokenizer.json`; MalformedFile when they are no list."""
    parts = step.get(key)
    if parts is not None and not isinstance(parts, list):
        raise MalformedFile(f"`{key}` in `tokenizer.json` is no list")
    return parts or []


def _is_neutral(normalizer: Any) -> bool:
    """No normalizer, or NFC, which llama.cpp leaves out for the models that have it."""
    if normalizer is None:
        return True
    if not isinstance(normalizer, dict):
        raise MalformedFile("`tokenizer.json` has a `normalizer` that is no object")
    if normalizer.get("type") == "Sequence":
        return all(_is_neutral(part) for part in listed(normalizer, "normalizers"))
    return bool(normalizer.get("type") == "NFC")


def _flatten(step: Any) -> list[str]:
    """The steps of a pre-tokenizer as one list of rules: a regular expression, or `gpt2`, `digit`, or a name."""
    if not isinstance(step, dict):
        raise MalformedFile("`tokenizer.json` has a `pre_tokenizer` that is no object")
    kind = step.get("type")
    if kind == "Sequence":
        return [rule for part in listed(step, "pretokenizers") for rule in _flatten(part)]
    if kind == "ByteLevel":
        if step.get("add_prefix_space"):
            return ["prefix space"]
        return ["gpt2"] if step.get("use_regex", True) else []
    if kind == "Digits" and step.get("individual_digits"):
        return ["digit"]
    if kind == "Split":
        return [_split_rule(step)]
    return [f"{kind} {sorted(step.items(), key=str)}"]


def _split_rule(step: dict[str, Any]) -> str:
    # These expressions match every character, so keeping the matches and removing the rest is the same as isolating.
    way = (step.get("behavior"), bool(step.get("invert")))
    pattern = step.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if way not in (("Isolated", False), ("Removed", True)) or not isinstance(regex, str):
        return f"split {way} {pattern}"
    rule = regex.replace("\r", r"\r").replace("\n", r"\n")
    return "digit" if rule == r"\p{N}" else rule
