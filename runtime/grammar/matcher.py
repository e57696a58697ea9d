"""A grammar and how far one answer has come in it: the tokens that may come next, and the tokens that must."""

from __future__ import annotations

import time
from typing import Any, Self

import numpy as np
from llguidance import LLMatcher

from runtime.errors import BadRequest

# Seconds that one question to llguidance may take, by the processor's clock.
_PATIENCE = 1.0


class Matcher:
    """The state of one answer. Every call raises BadRequest where the grammar turns out too complex to be kept."""

    def __init__(self, matcher: LLMatcher, vocabulary_size: int) -> None:
        self._matcher = matcher
        self._size = vocabulary_size

    def copy(self) -> Self:
        """The same grammar for another answer."""
        return type(self)(self._matcher.deep_copy(), self._size)

    @property
    def complete(self) -> bool:
        """Whether nothing may follow but the answer's end."""
        return bool(self._matcher.is_stopped())

    def take(self, token: int) -> bool:
        """Whether `token` may come next. If so, it has come: the state is the one after it."""
        return bool(self._asked(self._matcher.try_consume_tokens, [token]))

    def allowed(self) -> Any:
        """Which tokens may come next, bool `(vocabulary,)`; an end token where the answer may end."""
        mask = np.frombuffer(self._asked(self._matcher.compute_bitmask), np.uint8)
        return np.unpackbits(mask, count=self._size, bitorder="little").view(bool)

    def forced(self) -> list[int]:
        """The tokens that must come next, as the model's tokenizer cuts their text. They have come then."""
        tokens: list[int] = self._asked(self._matcher.compute_ff_tokens)
        if tokens:
            self._asked(self._matcher.consume_tokens, tokens)
        return tokens

    def _asked(self, question: Any, *arguments: Any) -> Any:
        started = time.thread_time()
        answer = question(*arguments)
        if self._matcher.is_error():
            reason = self._matcher.get_error().splitlines()[0][:200]
            raise BadRequest(f"the grammar cannot be kept: {reason}", "make it simpler")
        if time.thread_time() - started > _PATIENCE:
            raise BadRequest("the grammar takes too long at every token", "make it simpler")
        return answer
