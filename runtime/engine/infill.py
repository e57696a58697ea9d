"""Filling in: the prompt that has a model write the text between two others, by its vocabulary's own tokens.

The order is llama-server's (`format_prompt_infill`): other files, the text before, the text after, and the token that
asks for the middle.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

from runtime.errors import BadRequest
from runtime.infilling import Infill
from runtime.llama.vocabulary import Vocabulary

# Tokens of the texts around the hole, at most, where other files are told: llama-server's batch.
WINDOW = 2048
# The words that llama-server writes where it knows none: a name for the project, one for the file, and a line between
# files for a vocabulary without a token for that.
_PROJECT, _FILE, _BETWEEN = "myproject\n", "filename\n", "\n\n--- snip ---\n\n"


class Filled(NamedTuple):
    """The tokens of a prompt, and how many of the texts did not fit."""

    ids: array[int]
    dropped: int


def fill_in(vocabulary: Vocabulary, prefix: str, infill: Infill, window: int, room: int) -> Filled:
    """The prompt for the text between `prefix` and `infill.suffix`. Raises BadRequest for a model that cannot.

    In a `window` of tokens three quarters are for the end of `prefix`, and the rest is for the beginning of the suffix,
    with the text that the answer begins with (`infill.begun`). Other files get `room` tokens, the last ones.
    """
    marks = [vocabulary.infill(which) for which in ("pre", "suf", "mid")]
    if None in marks:
        raise BadRequest("this model has no tokens for filling in", "choose one with the capability `insert`")
    pre, suf, mid = (token for token in marks if token is not None)
    before, after, begun = (_ids(vocabulary, text) for text in (prefix, infill.suffix, infill.begun))
    others = _others(vocabulary, infill) if infill.files is not None else array("i")
    whole = len(before) + len(after) + len(others)
    quarter = window // 4
    before = before[max(0, len(before) - 3 * quarter) :]
    after = after[: max(0, quarter - (2 + len(begun)))]
    others = others[max(0, len(others) - max(0, room)) :]
    dropped = whole - len(before) - len(after) - len(others)
    head = others + vocabulary.added("bos")
    ids = array("i", [*head, pre, *before, *begun, suf, *after, mid])
    return Filled(ids, dropped)


def _others(vocabulary: Vocabulary, infill: Infill) -> array[int]:
    """The tokens of other files, each with its name where the vocabulary has a token for that."""
    ids, repository, file = array("i"), vocabulary.infill("rep"), vocabulary.infill("sep")
    if repository is not None:
        ids += array("i", [repository]) + _ids(vocabulary, _PROJECT)
    for each in infill.files or []:
        if file is None:
            ids += _ids(vocabulary, _BETWEEN)
        else:
            ids += array("i", [file]) + _ids(vocabulary, f"{each.name}\n")
        ids += _ids(vocabulary, each.text)
    if file is not None:
        ids += array("i", [file]) + _ids(vocabulary, _FILE)
    return ids


def _ids(vocabulary: Vocabulary, text: str) -> array[int]:
    return vocabulary.tokenize(text, special=False, add=False) if text else array("i")
