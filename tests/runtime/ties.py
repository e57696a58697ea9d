"""Greedy texts, compared as far as they can be: llama.cpp rounds differently in steps of different sizes."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.messages import TokenLogprob

MARGIN = 0.02
"""Logits of the tests' models change by some thousandths with the size of a step."""


def assert_same_but_for_ties(rows: Sequence[TokenLogprob], other: str, margin: float = MARGIN) -> None:
    """The greedy text whose tokens are `rows` is `other`, up to a token that is as likely as the other text's one.

    The rows need alternatives enough to have the other token among them.
    """
    text = ""
    for row in rows:
        if not other.startswith(text + row.token):
            rest = other[len(text) :]
            near = [logprob for token, _, logprob, _ in row.top if token and rest.startswith(token)]
            assert row.logprob is not None
            assert min((abs(row.logprob - each) for each in near), default=margin) < margin, (row, rest)
            return
        text += row.token
    assert text == other
