"""Bodies of OpenAI's routes for chats and completions."""

from __future__ import annotations

from typing import Any

import msgspec

from runtime.conversation import Text, ToolCall, Turn
from runtime.errors import BadRequest
from runtime.messages import Grammar
from server.api import grammars
from server.api.adapters import AdapterFields
from server.api.calls import Called, CalledFunction
from server.api.content import Content, content_texts
from server.api.grammars import GrammarField
from server.api.openai.tools import text_arguments
from server.api.options import Whole, with_sampling
from server.api.prompts import Prompts
from server.api.thinking import budgets_of, effort, with_budgets


class StreamOptions(msgspec.Struct):
    """Wishes about a stream: `include_usage` asks for a last chunk with the usage."""

    include_usage: bool | None = None


class CompletionFields(msgspec.Struct, kw_only=True):
    """The fields that both routes share, without the sampling options, which `with_sampling` adds."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    n: Whole | None = None
    max_tokens: Whole | None = None
    grammar: str | GrammarField | None = None
    adapters: AdapterFields = None
    draft: str | None = None
    draft_num_predict: Whole | None = None
    service_tier: str | None = None
    timings_per_token: bool | None = None

    @property
    def passed_over(self) -> list[str]:
        """Values that change nothing here, as the warning names them: every request is served alike."""
        return [] if self.service_tier in (None, "auto", "default") else ["`service_tier`"]

    @property
    def held_to(self) -> Grammar | None:
        """The grammar of the answers. Raises BadRequest."""
        return grammars.of_field(self.grammar)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class JsonSchema(msgspec.Struct):
    """A schema as OpenAI's clients send it. It is kept whether it is `strict` or not."""

    schema: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


class ResponseFormat(msgspec.Struct):
    """The form of an answer: text, any JSON object, or one by a schema, which llama-server's clients put here."""

    type: str = "text"
    json_schema: JsonSchema | None = None
    schema: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)

    @property
    def grammar(self) -> Grammar | None:
        """The grammar that answers are held to. Raises BadRequest."""
        if self.type == "text":
            return None
        if self.type not in ("json_object", "json_schema"):
            known = "text, json_object and json_schema"
            message = f"there is no `response_format` of type `{self.type[:40]}`"
            raise BadRequest(message, f"known are {known}", "response_format")
        schema = self.json_schema.schema if self.json_schema and self.type == "json_schema" else self.schema
        if bytes(schema) in (b"", b"null"):
            if self.type == "json_schema":
                raise BadRequest(
                    "`response_format` has no schema", "send it in `json_schema.schema`", "response_format"
                )
            return Grammar("json", field="response_format")
        return grammars.of_schema(schema, "response_format")


class CalledCustom(msgspec.Struct):
    """The custom tool of a call, with the text that it got."""

    name: str
    input: str


class OpenAICalled(msgspec.Struct):
    """A call in a message of the assistant, of a function or of a custom tool."""

    function: CalledFunction | None = None
    custom: CalledCustom | None = None
    id: str | None = None

    def call(self) -> ToolCall:
        """The call. Raises BadRequest."""
        if self.custom is not None:
            return ToolCall(self.custom.name, text_arguments(self.custom.input), self.id or "")
        if self.function is None:
            raise BadRequest("a call has neither `function` nor `custom`", "send what was called", "messages")
        return Called(self.function, self.id).call()


class OpenAIMessage(msgspec.Struct):
    """One turn of a conversation."""

    role: str
    content: Content = None
    name: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    prefix: bool | None = None
    tool_calls: list[OpenAICalled] | None = None
    tool_call_id: str | None = None

    def turn(self) -> Turn:
        """The turn; raises Unsupported for parts other than text, BadRequest where it lacks something."""
        if self.role == "tool" and not self.tool_call_id:
            raise BadRequest("a message of a tool has no `tool_call_id`", "send the id of the call", "messages")
        role = "system" if self.role == "developer" else self.role
        calls = [called.call() for called in self.tool_calls or []]
        texts = [] if calls and not self.content else content_texts(self.content, "messages")
        thinking = self.reasoning_content or self.reasoning or ""
        tool = (self.name or "") if role == "tool" else ""
        return Turn(role, [Text(text) for text in texts], calls, thinking, self.tool_call_id or "", tool)

    @property
    def passed_over(self) -> set[str]:
        """The fields given that change nothing here."""
        found = {"name": self.role != "tool" and self.name, "prefix": self.prefix}
        return {f"`messages[].{name}`" for name, value in found.items() if value}


class Prediction(msgspec.Struct):
    """A text that the answer is expected to resemble."""

    type: str = "content"
    content: Content = None

    @property
    def text(self) -> str:
        """The text. Raises BadRequest, Unsupported."""
        if self.type != "content":
            raise BadRequest(f"there is no `prediction` of type `{self.type[:40]}`", "send `content`", "prediction")
        return "".join(content_texts(self.content, "prediction"))


class Reasoning(msgspec.Struct):
    """The wish to think as OpenAI's newer routes, and OpenRouter's, spell it."""

    effort: str | None = None
    enabled: bool | None = None
    max_tokens: Whole | None = None


class Thinking(msgspec.Struct):
    """The wish to think as clients of Anthropic, GLM and DeepSeek spell it."""

    type: str | None = None
    budget_tokens: Whole | None = None

    @property
    def wish(self) -> bool | None:
        """Whether to think; None for as the model likes."""
        return {"enabled": True, "disabled": False}.get(self.type or "")


class ChatFields(CompletionFields, kw_only=True):
    """The fields of `/v1/chat/completions`."""

    messages: list[OpenAIMessage]
    max_completion_tokens: Whole | None = None
    logprobs: bool | None = None
    top_logprobs: Whole | None = None
    response_format: ResponseFormat | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    reasoning: Reasoning | None = None
    think: bool | str | None = None
    thinking: Thinking | bool | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    modalities: list[str] | None = None
    prediction: Prediction | None = None

    @property
    def held_to(self) -> Grammar | None:
        """The grammar of the answers. Raises BadRequest."""
        form = self.response_format.grammar if self.response_format else None
        return grammars.only(response_format=form, grammar=grammars.of_field(self.grammar))

    @property
    def thinks(self) -> tuple[str, bool | str | None]:
        """The wish to think and the field that it came by, the first of its spellings. Raises BadRequest."""
        nested = self.reasoning or Reasoning()
        spellings = {
            "reasoning_effort": self.reasoning_effort,
            "reasoning": nested.enabled if nested.effort is None else nested.effort,
            "think": self.think,
            "thinking": self.thinking.wish if isinstance(self.thinking, Thinking) else self.thinking,
            "enable_thinking": self.enable_thinking,
        }
        wishes = ((field, effort(value, field)) for field, value in spellings.items())
        return next((wish for wish in wishes if wish[1] is not None), ("", None))

    @property
    def all_budgets(self) -> dict[str, Any]:
        """The most tokens of thinking, by the names of the fields."""
        nested = self.thinking.budget_tokens if isinstance(self.thinking, Thinking) else None
        reasoning = self.reasoning.max_tokens if self.reasoning else None
        return {**budgets_of(self), "reasoning": reasoning, "thinking": nested}


class TextFields(CompletionFields, kw_only=True):
    """The fields of `/v1/completions`."""

    prompt: Prompts | None = None
    suffix: str | None = None
    echo: bool | None = None
    best_of: Whole | None = None
    logprobs: Whole | None = None


CHAT_BODY = with_sampling(with_budgets(ChatFields))
TEXT_BODY = with_sampling(TextFields)
