"""The parts of which a tokenizer makes a token: without them, the token would never come about.

Byte pair encoding joins, again and again, the pair of neighbours that its table of merges has first; SentencePiece's
joins the pair whose text has the highest score. Within a token that a text ends up with, the joins are the same in any
text as for the token's text alone, since none of them crosses its bounds. So the parts that are met on the way to the
token alone are the parts that any text needs for it. Source: `llm_tokenizer_bpe_session` and
`llm_tokenizer_spm_session` of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise

# The rank of a pair of neighbours, least first; None for a pair that is not joined.
Rank = Callable[[str, str], float | None]


def by_merges(merges: Iterable[str]) -> Rank:
    """The ranks of byte pair encoding: the place in the table."""
    places: dict[tuple[str, str], int] = {}
    for place, merge in enumerate(merges):
        left, _, right = merge[1:].partition(" ")
        places.setdefault((merge[:1] + left, right), place)
    return lambda left, right: places.get((left, right))


def by_scores(scores: Mapping[str, float]) -> Rank:
    """The ranks of SentencePiece's: the highest score of the joined text."""

    def rank(left: str, right: str) -> float | None:
        score = scores.get(left + right)
        return None if score is None else -score

    return rank


def parts_of(text: str, rank: Rank) -> set[str]:
    """All texts that are met while `text` is joined from its characters, these included."""
    symbols, met = list(text), set(text)
    while len(symbols) > 1:
        ranks = [rank(left, right) for left, right in pairwise(symbols)]
        least = min((each for each in ranks if each is not None), default=None)
        if least is None:
            break
        at = ranks.index(least)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        met.add(symbols[at])
    return met
