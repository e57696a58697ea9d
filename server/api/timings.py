"""Times of answers by llama-server's names, at their end and, where a request wants them, with every piece."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from runtime.messages import Delta, Finished, Started


@dataclass
class _Measured:
    """One answer so far: tokens, and the moment of its first piece in ns."""

    read: int
    cached: int
    first: int = 0
    written: int = 0
    end: Finished | None = None


class AnswerTimings:
    """The `timings` of the answers to one request; nothing is told unless they are `wanted`.

    As long as an answer goes on, its own times are the daemon's. At the end the engine tells all, the prompt's too.
    """

    def __init__(self, wanted: bool | None) -> None:
        self._wanted = bool(wanted)
        self._answers: dict[int, _Measured] = {}

    def start(self, index: int, frame: Started) -> None:
        """Answer `index` has left the queue."""
        read = frame.prompt_tokens - frame.cached
        self._answers[index] = _Measured(read, frame.cached)

    def add(self, index: int, frame: Delta) -> None:
        """More of an answer."""
        answer = self._answers[index]
        answer.first = answer.first or time.monotonic_ns()
        answer.written += frame.tokens

    def finish(self, index: int, frame: Finished) -> None:
        """The end of an answer."""
        self._answers[index].end = frame

    def shown(self, index: int) -> dict[str, Any]:
        """The field `timings` for a piece of an answer; empty where nobody wants it."""
        if not self._wanted:
            return {}
        answer = self._answers[index]
        if answer.end is not None:
            return {"timings": timings(answer.end)}
        now = time.monotonic_ns()
        written = _rates("predicted", answer.written, now - (answer.first or now))
        return {"timings": {"cache_n": answer.cached, "prompt_n": answer.read, **written}}


def timings(frame: Finished) -> dict[str, Any]:
    """The times of an answer, in milliseconds, by llama-server's names. Tokens out of the cache took none.

    An answer that had drafts tells their tokens too.
    """
    drafts = {"draft_n": frame.drafted, "draft_n_accepted": frame.accepted} if frame.drafted else {}
    return {
        "cache_n": frame.cached,
        **_rates("prompt", frame.prompt_tokens - frame.cached, frame.prompt_ns),
        **_rates("predicted", frame.answer_tokens, frame.answer_ns),
        **drafts,
    }


def _rates(what: str, tokens: int, nanoseconds: int) -> dict[str, Any]:
    """Tokens, milliseconds, and both ratios, by llama-server's names."""
    ms = nanoseconds / 1e6
    rates = {f"{what}_per_token_ms": ms / max(1, tokens), f"{what}_per_second": 1000 * tokens / ms if ms else 0.0}
    return {f"{what}_n": tokens, f"{what}_ms": ms} | rates
