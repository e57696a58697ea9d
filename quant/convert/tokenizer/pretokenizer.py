"""Recognises the pre-tokenizer of a `tokenizer.json`: how it cuts text into words before its merges apply.

`tokenizer.json` has rules, llama.cpp the name of a routine of its own. A routine is accepted where its rules are the
same to the letter, or cut hard texts at the same places, or make the same tokens of them. Nothing is guessed, because a
wrong name costs quality without any error.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from quant.convert.tokenizer.cutting import KNOWN, Pre
from quant.errors import MalformedFile, UnsupportedModel

# Texts of every kind of character, in runs of several lengths.
PIECES = (
    "a",
    "Zz",
    "é",
    "e\u0301",
    "ß",
    "Ж",
    "ع",
    "你",
    "か",
    "カ",
    "한",
    "ไ",
    "\u0e31",
    "ន",
    "ⅷ",
    "½",
    "²",
    "1",
    "22",
    "333",
    "4444",
    "55555",
    "٣",
    "'s",
    "'LL",
    "’s",
    "'",
    '"',
    ".",
    "...",
    ",",
    "!?",
    "(",
    ")",
    "_",
    "-",
    "+",
    "=",
    "$",
    "€",
    "#",
    "/",
    "//",
    "\\\\",
    "|",
    "~",
    "…",
    "。",
    "，",
    "、",
    "·",
    "«",
    "🚀",
    "👩\u200d👧",
    "\u200b",
    "\xa0",
    "\u3000",
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    " \n",
    "\n ",
    "\x01",
    "camelCase",
    "HTMLParser",
    "don't",
    "I'M",
    "ŭЖé",
    "666666",
    "<sentinel:7>",
    "IMGIMGABZ",
    "ㄱ",
    "ㄅ",
    "！",
)
# Every piece beside every other: texts on which two ways of cutting can hardly agree by chance.
HARD = tuple("".join(left + right + end for right in PIECES for end in ("b", " 1", "\n")) for left in PIECES)
NAMES = tuple(name for pre in KNOWN for name in pre.names)
_NAMED = ", ".join(pre.name for pre in KNOWN)
_HINT = f"if you know which routine of llama.cpp it needs, name it with `--pre` ({_NAMED})"


def recognise(tokenizer: dict[str, Any], same_either_way: Callable[[], bool]) -> str:
    """The name of llama.cpp's routine for a byte-level `tokenizer.json`; UnsupportedModel where none is the same.

    `same_either_way()` tells whether this vocabulary gives the same tokens with and without `ignore_merges`. It takes
    long, so it is called only where llama.cpp's routine and the tokenizer differ in that.
    """
    rules = tuple(_flatten(tokenizer.get("pre_tokenizer")))
    fitting = [pre for pre in KNOWN if pre.rules == rules] or _cutting_alike(tokenizer["pre_tokenizer"])
    if not fitting:
        found = _encoding_alike(tokenizer)
        if found:
            return found
        raise UnsupportedModel("its tokenizer cuts text into words in a way that is not known here", hint=_HINT)
    ignore = bool(tokenizer["model"].get("ignore_merges"))
    for pre in fitting:
        if pre.ignore_merges == ignore:
            return pre.name
    if same_either_way():
        return fitting[0].name
    raise UnsupportedModel(f"its tokenizer differs from `{fitting[0].name}` in `ignore_merges`", hint=_HINT)


def _cutting_alike(step: dict[str, Any]) -> list[Pre]:
    """The routines whose rules cut a hard text at the same places as `step`."""
    wanted = _cuts(step)
    return [pre for pre in KNOWN if wanted and _cuts(step_of(pre)) == wanted]


def _encoding_alike(tokenizer: dict[str, Any]) -> str | None:
    """The name of the first routine by which this vocabulary gives all hard texts the right ids, None without any.

    Its rules may differ from the tokenizer's: where no token has two digits, cutting between digits changes nothing.
    """
    from tokenizers import Tokenizer

    # Without the steps around the merges, and without added tokens.
    bare = {"version": "1.0", "model": tokenizer["model"], "pre_tokenizer": tokenizer["pre_tokenizer"]}
    try:
        coder = Tokenizer.from_str(json.dumps(bare))
        wanted = coder.encode_batch(list(HARD))
    except Exception:  # as in `_cuts_of`
        return None
    ids = [text.ids for text in wanted]
    for pre in KNOWN:
        coder.pre_tokenizer = Tokenizer.from_str(_bare(json.dumps(step_of(pre)))).pre_tokenizer
        coder.model.ignore_merges = pre.ignore_merges
        if all(coder.encode(text).ids == wanted for text, wanted in zip(HARD, ids, strict=True)):
            return pre.name
    return None


def step_of(pre: Pre) -> dict[str, Any]:
    """The rules of a routine as `tokenizer.json` has them."""
    steps: list[dict[str, Any]] = []
    for rule in pre.rules:
        if rule == "digit":
            steps.append({"type": "Digits", "individual_digits": True})
        elif rule != "gpt2":
            steps.append({"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated", "invert": False})
        else:
            steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True})
    if "gpt2" not in pre.rules:
        steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False})
    return {"type": "Sequence", "pretokenizers": steps}


def _bare(step: str) -> str:
    """A `tokenizer.json` with an empty vocabulary and the pre-tokenizer `step`."""
    return f'{{"version": "1.0", "model": {{"type": "BPE", "vocab": {{}}, "merges": []}}, "pre_tokenizer": {step}}}'


@cache
def _cuts_of(step: str) -> tuple[str, ...]:
    """The words into which a pre-tokenizer, as JSON, cuts the hard texts; empty where the library refuses it."""
    from tokenizers import Tokenizer

    try:
        cutter = Tokenizer.from_str(_bare(step)).pre_tokenizer
        return tuple(piece for text in HARD for piece, _ in cutter.pre_tokenize_str(text))
    except Exception:  # the library raises nothing narrower for a step that it does not know
        return ()


def _cuts(step: dict[str, Any]) -> tuple[str, ...]:
    return _cuts_of(json.dumps(step))


def check_name(name: str) -> str:
    """`name` itself, which the user gave. Raises UnsupportedModel, which lists all names, for an unknown one."""
    if name not in NAMES:
        raise UnsupportedModel(
            f"there is no pre-tokenizer `{name}`", hint=f"there are {_NAMED}, and llama.cpp's other names for these"
        )
    return name


def list_in(step: dict[str, Any], key: str) -> list[Any]:
    """The parts of a step of `tokenizer.json`; MalformedFile when they are no list."""
    parts = step.get(key)
    if parts is not None and not isinstance(parts, list):
        raise MalformedFile(f"`{key}` in `tokenizer.json` is no list")
    return parts or []


def _flatten(step: Any) -> list[str]:
    """The steps of a pre-tokenizer as one list of rules: a regular expression, or `gpt2`, `digit`, or a name."""
    if not isinstance(step, dict):
        raise MalformedFile("`tokenizer.json` has a `pre_tokenizer` that is no object")
    kind = step.get("type")
    if kind == "Sequence":
        return [rule for part in list_in(step, "pretokenizers") for rule in _flatten(part)]
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
