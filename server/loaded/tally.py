"""Counters of one model's requests since the daemon started; `/metrics` shows them by several names."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from registry.store.catalog import Model
from runtime.messages import CallDelta, Delta, Finished, FromWorker, Started

# Upper ends of the buckets, in seconds: vLLM's, whose dashboards expect some of them.
_REQUEST = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0)
_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0)


class Histogram:
    """Values sorted into buckets by the upper ends `bounds`, the last bucket without one; and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    @property
    def buckets(self) -> list[tuple[str, float]]:
        """The upper ends, the last one `+Inf`, each with the count of the values up to it."""
        total, found = 0, []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found


@dataclass
class Tally:
    """The counters of one model. Times are seconds; `prompt_tokens` count the `cached_tokens` among them."""

    model: Model
    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0
    written: int = 0
    """Tokens of answers as they come; `answer_tokens` has those of answers that have ended."""
    prompt_seconds: float = 0.0
    answer_seconds: float = 0.0
    drafted: int = 0
    accepted: int = 0
    longest: int = 0
    """Tokens of the longest prompt with its answer."""
    waiting: int = 0
    running: int = 0
    """Requests that wait for the engine, and requests that it answers."""
    ends: Counter[str] = field(default_factory=Counter)
    """Answers by the reason for which they ended; `failed` for errors."""
    requests: Histogram = field(default_factory=lambda: Histogram(_REQUEST))
    queued: Histogram = field(default_factory=lambda: Histogram(_REQUEST))
    first_text: Histogram = field(default_factory=lambda: Histogram(_FIRST))
    per_token: Histogram = field(default_factory=lambda: Histogram(_TOKEN))

    @contextmanager
    def request(self) -> Iterator[Counting]:
        """Count a request while the block runs."""
        counting = Counting(self)
        try:
            yield counting
        except Exception:
            self.ends["failed"] += 1
            raise
        finally:
            counting.close()

    def read(self, tokens: int) -> None:
        """Count the tokens of texts that became vectors or scores."""
        self.prompt_tokens += tokens


class Counting:
    """One request on its way: its frames, and when they came."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._began = time.monotonic()
        self._started = self._told = False
        tally.waiting += 1

    def count(self, frame: FromWorker) -> None:
        """Count a frame of its answers."""
        tally, waited = self._tally, time.monotonic() - self._began
        match frame:
            case Started():
                self._start()
                tally.queued.add(waited)
                tally.prompt_tokens += frame.prompt_tokens
                tally.cached_tokens += frame.cached
            case Delta() | CallDelta():
                if not self._told:
                    self._told = True
                    tally.first_text.add(waited)
                if isinstance(frame, Delta):
                    tally.written += frame.tokens
            case Finished():
                self._finish(frame)

    def close(self) -> None:
        """The request has ended, or nobody waits for it any more."""
        if self._started:
            self._tally.running -= 1
        else:
            self._tally.waiting -= 1
        self._tally.requests.add(time.monotonic() - self._began)

    def _start(self) -> None:
        if not self._started:
            self._started = True
            self._tally.waiting -= 1
            self._tally.running += 1

    def _finish(self, frame: Finished) -> None:
        tally = self._tally
        tally.ends[frame.reason] += 1
        tally.answer_tokens += frame.answer_tokens
        if frame.index == 0:  # the answers to one prompt share its time
            tally.prompt_seconds += frame.prompt_ns / 1e9
        tally.answer_seconds += frame.answer_ns / 1e9
        tally.drafted += frame.drafted
        tally.accepted += frame.accepted
        tally.longest = max(tally.longest, frame.prompt_tokens + frame.answer_tokens)
        if frame.answer_tokens > 1:  # the first token comes with the prompt
            tally.per_token.add(frame.answer_ns / 1e9 / (frame.answer_tokens - 1))
