"""Probabilities as OpenAI reports them: of the model itself, before penalties, temperature and cuts."""

from __future__ import annotations

from typing import Any

import numpy as np

from runtime.llama.model import Model
from runtime.messages import TokenLogprob


def token_logprob(model: Model, logits: Any, token: int, alternatives: int) -> TokenLogprob:
    """The logarithm of the probability of `token`, and of the best `alternatives`; `logits` is float32 `(n_vocab,)`."""
    largest = float(logits.max())
    total = largest + float(np.log(np.exp(logits - np.float32(largest)).sum(dtype=np.float64)))
    top = []
    if alternatives:
        best = np.argpartition(logits, -alternatives)[-alternatives:]
        order = best[np.argsort(-logits[best], kind="stable")]
        top = [(_text(model, i), i, float(logits[i]) - total, model.piece(i)) for i in map(int, order)]
    return TokenLogprob(_text(model, token), token, float(logits[token]) - total, model.piece(token), top)


def _text(model: Model, token: int) -> str:
    return model.piece(token).decode(errors="replace")
