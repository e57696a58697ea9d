"""One answer on its way: what it was asked, what it has said, and where it is in the cache."""

from __future__ import annotations

import time
from array import array

from runtime import messages as m
from runtime.cache.pool import Sequence
from runtime.engine.prompt import Prompt
from runtime.errors import BadRequest
from runtime.llama.sampling import Sampler, check
from runtime.text.stops import Assembler, Stops


class Session:
    """State of one answer: `tokens` are the prompt and what was said; `seq` holds a beginning of them once admitted."""

    def __init__(self, request: m.Submit, index: int, prompt: Prompt, stops: Stops) -> None:
        self.id = request.id
        self.index = index
        self.request = request
        self.tokens = array("i", prompt.ids)
        self.prompt_tokens = len(prompt.ids)
        self.truncated = prompt.dropped
        self.border = prompt.border
        self.marks: list[int] = []
        """Positions in the prompt where a checkpoint is due, the next one first."""
        self.seq: Sequence | None = None
        self.sampler: Sampler | None = None
        self.text = Assembler(stops)
        self.answered = 0
        self.cached = 0
        limit = request.limits.max_tokens
        self.max_tokens = limit if limit >= 0 else 1 << 30
        seconds = request.limits.seconds
        self.deadline = time.monotonic() + seconds if seconds > 0 else 0.0
        self.admitted_ns = 0
        self.first_ns = 0
        self._unsaid = 0
        self._logprobs: list[m.TokenLogprob] = []

    @property
    def pending(self) -> int:
        """How many tokens are not in the cache yet; 1 means that the answer is being written."""
        return len(self.tokens) - len(self.seq.tokens) if self.seq else len(self.tokens)

    @property
    def stretch(self) -> int:
        """How many of the pending tokens may be read in one go."""
        return min(self.pending, self.marks[0] - len(self.seq.tokens)) if self.marks and self.seq else self.pending

    @property
    def left(self) -> int:
        """How many tokens the answer may still get."""
        return self.max_tokens - self.answered

    def say(self, token: int, piece: bytes, logprob: m.TokenLogprob | None) -> m.Delta | None:
        """Add a drawn token; what can be shown of it, if anything."""
        self.tokens.append(token)
        self.answered += 1
        self._unsaid += 1
        if logprob:
            self._logprobs.append(logprob)
        text = self.text.push(piece)
        return self._delta(text) if text else None

    def rest(self) -> m.Delta | None:
        """What was held back, at the end."""
        text = self.text.finish()
        return self._delta(text) if text or self._unsaid else None

    def _delta(self, text: str) -> m.Delta:
        delta = m.Delta(self.id, text, self._unsaid, self.index, self._logprobs)
        self._unsaid, self._logprobs = 0, []
        return delta

    def finished(self, reason: str) -> m.Finished:
        """The last frame."""
        now = time.monotonic_ns()
        start = self.admitted_ns or now
        first = self.first_ns or now
        return m.Finished(
            self.id,
            reason,
            self.prompt_tokens,
            self.answered,
            self.cached,
            prompt_ns=first - start,
            answer_ns=now - first,
            index=self.index,
            stop=self.text.stop,
        )


def open_sessions(request: m.Submit, prompt: Prompt, more_stops: tuple[str, ...]) -> list[Session]:
    """The answers that `request` asks for, none started."""
    stops = Stops([*request.limits.stop, *more_stops])
    return [Session(request, index, prompt, stops) for index in range(request.count)]


def check_request(request: m.Submit, n_vocab: int) -> None:
    """Raises BadRequest for a bias of an unknown token, and unless there is either a conversation or a prompt."""
    check(request.sampling, n_vocab)
    if (request.turns is None) == (request.prompt is None):
        raise BadRequest("a request has either turns or a prompt")
