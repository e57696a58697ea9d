"""Drawing tokens for an answer that is held to a grammar.

The sampler draws first, from all tokens, and the token is allowed most of the time. Where it is not, a second draw is
made among the tokens that the chain has left over and the grammar allows, by their probabilities. So the distribution
is the chain's own, restricted to the allowed tokens and renormalized. With q for a token's probability, and a for the
sum of q over the allowed tokens, it is drawn first with q, or second with (1 - a) q / a. That is q / a in all.

A second run of the whole chain over masked logits would not give it, because top-k and top-p would cut elsewhere.
Where the chain leaves over no token that is allowed, it is run over the allowed tokens alone.
"""

from __future__ import annotations

import ctypes
import random
from typing import Any, Protocol

import numpy as np

from runtime.llama.library import library
from runtime.llama.sampling import Sampler

_TOKEN = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])
"""`llama_token_data`."""


class Rules(Protocol):
    """A grammar that an answer is held to, and how far it has come in it."""

    @property
    def complete(self) -> bool:
        """Whether nothing may follow but the answer's end."""

    def forced(self) -> list[int]:
        """The tokens that must come next. They have come then."""

    def take(self, token: int) -> bool:
        """Whether `token` may come next; if so, it has come."""

    def allowed(self) -> Any:
        """Which tokens may come next, bool `(vocabulary,)`; at least one."""


class MaskedSampler:
    """Draws tokens with a sampler of one answer. It belongs to the engine's thread."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._random = random.Random(sampler.seed)

    def draw(self, context: Any, row: int, logits: Any, grammar: Rules) -> int:
        """The next token, by the logits of `row` of llama.cpp's `context`: float32 `(vocabulary,)`."""
        sampler = self._sampler
        if not sampler.remembers:
            token = sampler.sample(context, row)
            if grammar.take(token):
                return token
        chosen, left = self._run(np.arange(len(logits), dtype="<i4"), logits)
        if sampler.remembers and grammar.take(chosen):
            sampler.accept(chosen)
            return chosen
        allowed = grammar.allowed()
        left = left[allowed[left["id"]]]
        if len(left):
            chosen = int(left["id"][self._choose(left["logit"])])
        else:
            ids = np.flatnonzero(allowed).astype("<i4")
            chosen, _ = self._run(ids, logits[ids])
        if not grammar.take(chosen):
            raise AssertionError(f"token {chosen} is in the mask and is not taken")
        sampler.accept(chosen)
        return chosen

    def _run(self, ids: Any, logits: Any) -> tuple[int, Any]:
        """Run the chain over some tokens: the one it chooses, and the tokens that it leaves over."""
        candidates = np.empty(len(ids), _TOKEN)
        candidates["id"], candidates["logit"], candidates["p"] = ids, logits, 0
        low = library()
        pointer = candidates.ctypes.data_as(ctypes.POINTER(low.llama_token_data))
        native = low.llama_token_data_array(pointer, len(ids), -1, False)
        self._sampler.apply(native)
        return int(candidates["id"][native.selected]), candidates[: native.size]

    def _choose(self, logits: Any) -> int:
        """An index into `logits`, drawn by their softmax; of the largest where the sampler is greedy."""
        if self._sampler.greedy:
            return int(logits.argmax())
        weights = np.exp(logits.astype(np.float64) - logits.max())
        sums = weights.cumsum()
        return min(int(np.searchsorted(sums, self._random.random() * sums[-1], side="right")), len(sums) - 1)
