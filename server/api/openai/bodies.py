"""Bodies of OpenAI's routes for chats and completions."""

from __future__ import annotations

from typing import Any

import msgspec

from runtime.conversation import Text, Turn
from server.api.options import with_sampling
from server.api.request import refuse


class StreamOptions(msgspec.Struct):
    """Wishes about a stream: `include_usage` asks for a last chunk with the usage."""

    include_usage: bool | None = None


class CompletionFields(msgspec.Struct, kw_only=True):
    """The fields that both routes share, without the sampling options, which `with_sampling` adds."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    max_tokens: int | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ContentPart(msgspec.Struct):
    """A piece of a message's content."""

    type: str
    text: str | None = None


class OpenAIMessage(msgspec.Struct):
    """One turn of a conversation."""

    role: str
    content: str | list[ContentPart] | None = None
    tool_calls: list[Any] | None = None

    def turn(self) -> Turn:
        """The turn; raises Unsupported unless it is text alone."""
        refuse(tool_calls=self.tool_calls)
        parts = self.content if isinstance(self.content, list) else [ContentPart("text", self.content or "")]
        for part in parts:
            if part.type != "text":
                refuse(**{part.type: True})
        role = "system" if self.role == "developer" else self.role
        return Turn(role, [Text(part.text or "") for part in parts])


class ChatFields(CompletionFields, kw_only=True):
    """The fields of `/v1/chat/completions`."""

    messages: list[OpenAIMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    modalities: list[str] | None = None


class TextFields(CompletionFields, kw_only=True):
    """The fields of `/v1/completions`."""

    prompt: str | list[str | int | list[int]] | None = None
    suffix: str | None = None
    echo: bool | None = None
    best_of: int | None = None
    logprobs: int | None = None


CHAT_BODY = with_sampling(ChatFields)
TEXT_BODY = with_sampling(TextFields)
