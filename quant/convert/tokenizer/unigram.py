"""Unigram vocabularies, as XLM-RoBERTa's: the likeliest way to put a text together from pieces with scores."""

from __future__ import annotations

import binascii
import math
import struct
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quant.convert.tokenizer.added import AddedToken, ids_by_text, merge_added, note, read_step
from quant.convert.tokenizer.pretokenizer import list_in
from quant.convert.tokenizer.vocabulary import (
    VocabularyPlan,
    broken,
    framing,
    place_tokens,
    prefix_space,
    read_added,
    steps,
    unsupported,
)
from quant.errors import UnsupportedModel
from quant.gguf.header import TOKEN_UNKNOWN
from quant.notes import WHITE_SPACE, Space

ROUNDED = "its tokenizer's scores are rounded to four bytes, which decides otherwise between equally likely pieces"
"""The remark where two ways to cut a text have one score by GGUF's numbers, and two by those of `tokenizers`."""


def read(tokenizer: dict[str, Any], size: int, decoder: Mapping[int, AddedToken]) -> VocabularyPlan:
    """The vocabulary of a `tokenizer.json` with a model of the type Unigram."""
    model = tokenizer["model"]
    if model.get("byte_fallback"):
        raise UnsupportedModel("a Unigram tokenizer that falls back on bytes cannot be converted")
    pieces = list_in(model, "vocab")
    if not pieces or not all(map(_is_piece, pieces)):
        raise broken("`vocab` is no list of pieces with their scores")
    vocab = {text: id for id, (text, _) in enumerate(pieces)}
    if len(vocab) != len(pieces):
        raise broken("two pieces of `vocab` are the same")
    added = merge_added(read_added(tokenizer), decoder, vocab, size)
    tokens, types = place_tokens(vocab, added, size)
    unknown = model.get("unk_id")
    if type(unknown) is not int or not 0 <= unknown < len(pieces):
        raise broken("`unk_id` is no piece")
    types[unknown] = TOKEN_UNKNOWN
    first, last = framing(tokenizer)
    preparation = _preparation(tokenizer)
    scores = [float(score) for _, score in pieces]
    entries = {
        "model": "t5",
        "pre": "default",
        "tokens": tokens,
        "token_type": types,
        "scores": scores + [0.0] * (size - len(scores)),
        "unknown_token_id": unknown,
        **preparation.entries(),
    }
    ids = ids_by_text(vocab, added)
    end = (vocab.get("▁", unknown), preparation.ends()) if preparation.collapses and not preparation.cuts else None
    noted = note(added, tokens, types, preparation.steps, preparation.noted_space(), end)
    # SentencePiece keeps scores in four bytes each, a training by `tokenizers` itself in eight.
    rounded = array("f", scores).tolist() != scores
    return VocabularyPlan(ids, entries, first, last, noted, (ROUNDED,) if rounded else ())


def _is_piece(entry: Any) -> bool:
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str) or not entry[0]:
        return False
    score = entry[1]
    return type(score) in (int, float) and abs(score) < 1e30 and math.isfinite(score)


@dataclass
class _Preparation:
    """The changes to a text before it is cut into pieces.

    - `steps`: for our runtime. `table`: of replacements, for llama.cpp.
    - `collapses`: runs of spaces become one space. `strips`: spaces at the end go.
    - `cuts`: no spaces are left at either end of a stretch between added tokens.
    - `space`: which stretches get a space in front.
    """

    steps: list[list[str]] = field(default_factory=list)
    table: bytes = b""
    collapses: bool = False
    strips: bool = False
    cuts: bool = False
    space: Space = ""

    def entries(self) -> dict[str, Any]:
        """The entries by which llama.cpp does its share."""
        entries: dict[str, Any] = {
            "add_space_prefix": self.space != "never",
            "remove_extra_whitespaces": self.collapses,
        }
        return entries | ({"precompiled_charsmap": self.table} if self.table else {})

    def noted_space(self) -> Space:
        """The stretches to which our runtime adds a space: none where spaces collapse, for llama.cpp adds it then.

        Without collapsing, llama.cpp would add a space to stretches that begin with one.
        """
        return "" if self.collapses else self.space

    def ends(self) -> str:
        """The characters that count as spaces, which llama.cpp drops at the end of a text."""
        return "".join(c for c in WHITE_SPACE if c == " " or _replaced(self.table, c.encode()) == b" ")


def _normalizing(tokenizer: dict[str, Any]) -> _Preparation:
    """The preparation by the normalizer."""
    preparation = _Preparation()
    for step in steps(tokenizer.get("normalizer"), "normalizers"):
        known = read_step(step)
        if step.get("type") == "Precompiled" and not (preparation.collapses or preparation.strips):
            preparation.table = _table(step.get("precompiled_charsmap"))
        elif step.get("pattern") == {"Regex": " {2,}"} and step.get("content") in (" ", "▁"):
            preparation.collapses = True
        elif step.get("type") == "Strip" and step.get("strip_right"):
            preparation.strips = True
            preparation.steps.append(["Strip", "right"])
        elif known is not None and not (preparation.table or preparation.collapses or preparation.strips):
            preparation.steps.append(known)
        else:
            raise unsupported(step)
    return preparation


def _preparation(tokenizer: dict[str, Any]) -> _Preparation:
    """The preparation by normalizer and pre-tokenizer.

    Raises UnsupportedModel for steps that neither llama.cpp nor our runtime does.
    """
    preparation = _normalizing(tokenizer)
    for step in steps(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "WhitespaceSplit" and not preparation.space:
            preparation.collapses = preparation.cuts = True
            preparation.steps += [] if preparation.table else [["Replace", c, " "] for c in WHITE_SPACE if c != " "]
        elif step.get("type") == "Metaspace" and step.get("replacement") == "▁":
            preparation.space = prefix_space(step)
        else:
            raise unsupported(step)
    if not preparation.space:
        raise UnsupportedModel("its tokenizer keeps spaces, and llama.cpp needs them replaced by `▁`")
    if preparation.collapses and preparation.space != "each":
        raise UnsupportedModel("its tokenizer puts a space in front of only some texts, and llama.cpp of all")
    return preparation


def _replaced(table: bytes, text: bytes) -> bytes | None:
    """The replacement of exactly this text in a table, None where it has none.

    The table is a double array, and is read as `normalize_prefix` in llama.cpp reads it.
    """
    size = int.from_bytes(table[:4], "little")
    nodes = struct.unpack_from(f"<{size // 4}I", table, 4) if table else (0,)
    node, at = nodes[0], _base(nodes[0])
    for byte in text:
        at ^= byte
        node = nodes[at] if at < len(nodes) else 0
        if node & 0x800000FF != byte:
            return None
        at ^= _base(node)
    if not node >> 8 & 1 or at >= len(nodes):
        return None
    return table[4 + size + (nodes[at] & 0x7FFFFFFF) :].partition(b"\0")[0]


def _base(node: int) -> int:
    return node >> 10 << ((node & 512) >> 6)


def _table(text: Any) -> bytes:
    """The table of replacements in base64 `text`: a length of four bytes, a double array, the replacements' texts."""
    try:
        table = binascii.a2b_base64(text, strict_mode=True) if isinstance(text, str) else b""
    except ValueError:
        table = b""
    if not is_table(table):
        raise broken("`precompiled_charsmap` is no table of replacements")
    return table


def is_table(table: Any) -> bool:
    """Whether these bytes are safe for llama.cpp, which does not check the length at their beginning."""
    if not isinstance(table, bytes) or len(table) < 5:
        return False
    size = int.from_bytes(table[:4], "little")
    return not size % 4 and 4 + size < len(table) and table[-1] == 0
