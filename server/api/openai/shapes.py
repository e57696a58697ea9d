"""Pieces of OpenAI's answers: usage, log probabilities, and choices gathered into whole ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from runtime.messages import Delta, Finished, Started, TokenLogprob


@dataclass
class Usage:
    """Tokens read and written so far, over all prompts and answers of a request."""

    prompt: int = 0
    cached: int = 0
    answer: int = 0

    def begin(self, frame: Started) -> None:
        """Count a prompt."""
        self.prompt += frame.prompt_tokens
        self.cached += frame.cached

    def end(self, frame: Finished) -> None:
        """Count an answer."""
        self.answer += frame.answer_tokens

    def body(self) -> dict[str, Any]:
        """The `usage` object."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.answer,
            "total_tokens": self.prompt + self.answer,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


@dataclass
class Offset:
    """Where in the text of an answer, behind an echo of its prompt, the next token with probabilities stands."""

    at: int = 0
    begun: bool = False

    def take(self, frame: Delta) -> int:
        """Where the first row of `frame` stands; the next one is looked for behind its last."""
        at = self.at
        if frame.logprobs:
            self.at += sum(len(row.token) for row in frame.logprobs)
            self.begun = True
        elif not self.begun:
            self.at += len(frame.text)
        return at


@dataclass
class Choice:
    """One answer while it is gathered; `start` is where in the text its first row stands, behind an echo."""

    text: list[str] = field(default_factory=list)
    rows: list[TokenLogprob] = field(default_factory=list)
    offset: Offset = field(default_factory=Offset)
    start: int = 0
    reason: str | None = None


class Choices:
    """The answers of a request that does not stream."""

    def __init__(self, chat: bool, count: int) -> None:
        self._chat = chat
        self._found = [Choice() for _ in range(count)]

    def add(self, index: int, frame: Started | Delta | Finished) -> None:
        """Take in a frame of answer `index`."""
        choice = self._found[index]
        if isinstance(frame, Delta):
            at = choice.offset.take(frame)
            if frame.logprobs and not choice.rows:
                choice.start = at
            choice.text.append(frame.text)
            choice.rows += frame.logprobs
        elif isinstance(frame, Finished):
            choice.reason = frame.reason

    def whole(self) -> list[dict[str, Any]]:
        """The `choices` array."""
        return [self._one(index, choice) for index, choice in enumerate(self._found)]

    def _one(self, index: int, choice: Choice) -> dict[str, Any]:
        text = "".join(choice.text)
        if not self._chat:
            logprobs = text_logprobs(choice.rows, choice.start) if choice.rows else None
            return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": choice.reason}
        message = {"role": "assistant", "content": text, "refusal": None}
        logprobs = chat_logprobs(choice.rows) if choice.rows else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.reason}


def chat_logprobs(rows: list[TokenLogprob]) -> dict[str, Any]:
    """The `logprobs` object of a chat choice."""
    content = []
    for row in rows:
        top = [{"token": token, "logprob": value, "bytes": list(raw)} for token, _, value, raw in row.top]
        content.append({"token": row.token, "logprob": row.logprob, "bytes": list(row.raw), "top_logprobs": top})
    return {"content": content, "refusal": None}


def text_logprobs(rows: list[TokenLogprob], start: int = 0) -> dict[str, Any]:
    """The `logprobs` object of a completion choice; offsets count from `start`, where the first row given stands."""
    offsets = [start]
    for row in rows:
        offsets.append(offsets[-1] + len(row.token))
    return {
        "tokens": [row.token for row in rows],
        "token_logprobs": [row.logprob for row in rows],
        "top_logprobs": [{token: value for token, _, value, _ in row.top} for row in rows],
        "text_offset": offsets[:-1],
    }
