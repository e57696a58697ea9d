"""Unigram vocabularies as those of XLM-RoBERTa: the likeliest way to put a text together from pieces with scores."""

from __future__ import annotations

import binascii
import math
from typing import Any

from quant.convert.pretokenizer import listed
from quant.convert.vocabulary import Vocabulary, broken, framing, place_tokens, read_added, steps
from quant.errors import UnsupportedModel
from quant.gguf import TOKEN_UNKNOWN


def read(tokenizer: dict[str, Any], size: int) -> Vocabulary:
    """The vocabulary of a `tokenizer.json` with a model of the type Unigram."""
    model = tokenizer["model"]
    if model.get("byte_fallback"):
        raise UnsupportedModel("a Unigram tokenizer that falls back on bytes cannot be converted")
    pieces = listed(model, "vocab")
    if not pieces or not all(map(_is_piece, pieces)):
        raise broken("`vocab` is no list of pieces with their scores")
    vocab = {text: id for id, (text, _) in enumerate(pieces)}
    if len(vocab) != len(pieces):
        raise broken("two pieces of `vocab` are the same")
    added = read_added(tokenizer)
    tokens, types = place_tokens(vocab, added, size)
    unknown = model.get("unk_id")
    if type(unknown) is not int or not 0 <= unknown < len(pieces):
        raise broken("`unk_id` is no piece")
    types[unknown] = TOKEN_UNKNOWN
    first, last = framing(tokenizer)
    scores = [float(score) for _, score in pieces]
    entries = {
        "model": "t5",
        "pre": "default",
        "tokens": tokens,
        "token_type": types,
        "scores": scores + [0.0] * (size - len(scores)),
        "unknown_token_id": unknown,
        **_preparation(tokenizer),
    }
    ids = {**vocab, **{content: id for id, content, _ in added}}
    return Vocabulary(ids, entries, first, last)


def _is_piece(entry: Any) -> bool:
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str) or not entry[0]:
        return False
    score = entry[1]
    return type(score) in (int, float) and abs(score) < 1e30 and math.isfinite(score)


def _preparation(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """What happens to a text before it is cut: a table of replacements, and what becomes of spaces."""
    table = b""
    collapse = prefix = escaped = False
    for step in steps(tokenizer.get("normalizer"), "normalizers"):
        kind = step.get("type")
        if kind == "Precompiled":
            table = _table(step.get("precompiled_charsmap"))
        elif kind == "Replace" and step.get("pattern") == {"Regex": " {2,}"} and step.get("content") in (" ", "▁"):
            collapse = True
        elif kind != "Strip":
            raise UnsupportedModel(f"its tokenizer has the step `{ascii(kind)[:40]}`, which llama.cpp does not know")
    for step in steps(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        kind = step.get("type")
        if kind == "WhitespaceSplit":
            collapse = True
        elif kind == "Metaspace" and step.get("replacement") == "▁":
            escaped = True
            prefix = step.get("prepend_scheme", "always") != "never" and bool(step.get("add_prefix_space", True))
        else:
            raise UnsupportedModel(f"its tokenizer has the step `{ascii(kind)[:40]}`, which llama.cpp does not know")
    if not escaped:
        raise UnsupportedModel("its tokenizer keeps spaces, and llama.cpp needs them replaced by `▁`")
    entries: dict[str, Any] = {"add_space_prefix": prefix, "remove_extra_whitespaces": collapse}
    return entries | ({"precompiled_charsmap": table} if table else {})


def _table(text: Any) -> bytes:
    """A compact double array of replacements, its length first."""
    try:
        table = binascii.a2b_base64(text, strict_mode=True) if isinstance(text, str) else b""
    except ValueError:
        table = b""
    if not is_table(table):
        raise broken("`precompiled_charsmap` is no table of replacements")
    return table


def is_table(table: Any) -> bool:
    """Whether these bytes can be given to llama.cpp, which believes the length in front."""
    if not isinstance(table, bytes) or len(table) < 5:
        return False
    size = int.from_bytes(table[:4], "little")
    return not size % 4 and 4 + size < len(table) and table[-1] == 0
