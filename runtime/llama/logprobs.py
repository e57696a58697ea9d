"""Probabilities as OpenAI reports them: of the model itself, before penalties, temperature and cuts."""

from __future__ import annotations

from typing import Any

import numpy as np

from runtime.llama.vocabulary import Vocabulary
from runtime.messages import TokenLogprob


def token_logprob(vocabulary: Vocabulary, logits: Any, token: int, alternatives: int) -> TokenLogprob:
    """The natural logarithms of the probabilities of `token` and of the N most probable tokens (`alternatives` is N).

    `logits` is float32 `(vocabulary,)`.
    """
    largest = float(logits.max())
    total = largest + float(np.log(np.exp(logits - np.float32(largest)).sum(dtype=np.float64)))
    top = []
    if alternatives:
        best = np.argpartition(logits, -alternatives)[-alternatives:]
        order = best[np.argsort(-logits[best], kind="stable")]
        top = [(_text(vocabulary, i), i, float(logits[i]) - total, vocabulary.piece(i)) for i in map(int, order)]
    return TokenLogprob(_text(vocabulary, token), token, float(logits[token]) - total, vocabulary.piece(token), top)


def first_logprob(vocabulary: Vocabulary, token: int) -> TokenLogprob:
    """The row of a prompt's first token, before which there is nothing to tell its probability from."""
    return TokenLogprob(_text(vocabulary, token), token, None, vocabulary.piece(token))


def _text(vocabulary: Vocabulary, token: int) -> str:
    return vocabulary.piece(token).decode(errors="replace") or vocabulary.text(token)
