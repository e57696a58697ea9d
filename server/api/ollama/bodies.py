"""Bodies of Ollama's routes."""

from __future__ import annotations

from typing import Any

import msgspec

from registry.store.catalog import Model
from runtime.conversation import Text, Turn
from runtime.errors import BadRequest
from runtime.messages import Grammar
from server.api import grammars, options
from server.api.adapters import AdapterFields
from server.api.calls import Called
from server.api.grammars import GrammarField
from server.api.request import ModelBody, refuse
from server.api.thinking import with_budgets
from server.loaded.wish import LoadWish
from server.values import duration


class LoadBody(ModelBody):
    """The fields of every route that loads a model."""

    options: dict[str, Any] | None = None
    keep_alive: str | int | float | None = None

    @property
    def given_options(self) -> dict[str, Any]:
        """The `options`, empty where there are none."""
        return self.options or {}

    @property
    def context(self) -> int | None:
        """The context asked for, in tokens; None for the settings' own. Raises BadRequest."""
        return options.context(self.given_options)

    def wish(self, draft: Model | None = None) -> LoadWish:
        """How the model should be loaded, with `draft` to draft for it. Raises BadRequest."""
        return LoadWish(self.context, self.keep_alive_seconds, options.kv_type(self.given_options), draft)

    @property
    def keep_alive_seconds(self) -> float | None:
        """Seconds to stay loaded; None for the settings' own. Raises BadRequest."""
        if self.keep_alive in (None, ""):
            return None
        try:
            return duration(self.keep_alive)
        except ValueError:
            shown = str(self.keep_alive)[:40]
            hint = 'send seconds, or a text such as "5m"'
            raise BadRequest(f"`keep_alive` is no duration: `{shown}`", hint, "keep_alive") from None


class AnswerBody(LoadBody):
    """The fields that `/api/generate` and `/api/chat` share."""

    stream: bool | None = None
    format: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    grammar: str | GrammarField | None = None
    think: bool | str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    truncate: bool | None = None
    shift: bool | None = None
    logprobs: bool | None = None
    top_logprobs: options.Whole | None = None
    adapters: AdapterFields = None
    render_only: bool | None = msgspec.field(default=None, name="_debug_render_only")
    draft: str | None = None

    @property
    def held_to(self) -> Grammar | None:
        """The grammar that `format` or `grammar` asks for. Raises BadRequest."""
        return grammars.only(format=self._format(), grammar=grammars.of_field(self.grammar))

    def _format(self) -> Grammar | None:
        """The `format`: "json" or a JSON schema; clients send null and an empty text for none."""
        match bytes(self.format):
            case b"" | b"null" | b'""':
                return None
            case b'"json"':
                return Grammar("json", field="format")
        return grammars.of_schema(self.format, "format")


class GenerateBody(AnswerBody):
    """The body of `/api/generate`. `context` of an earlier answer comes before the prompt, as token ids."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    earlier: list[int] | None = msgspec.field(default=None, name="context")
    raw: bool | None = None
    images: list[Any] | None = None


class OllamaMessage(msgspec.Struct):
    """One turn of a conversation."""

    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[Called] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None

    def turn(self) -> Turn:
        """The turn; raises Unsupported for images, BadRequest for calls that are none."""
        refuse(images=self.images)
        role = self.role.lower()
        role = "system" if role == "developer" else role
        parts = [Text(self.content)] if self.content else []
        calls = [called.call() for called in self.tool_calls or []]
        return Turn(role, parts, calls, self.thinking or "", self.tool_call_id or "", self.tool_name or "")


class OllamaChatBody(AnswerBody):
    """The body of `/api/chat`."""

    messages: list[OllamaMessage] = msgspec.field(default_factory=list)
    tools: list[Any] | None = None


GENERATE_BODY = with_budgets(GenerateBody)
CHAT_BODY = with_budgets(OllamaChatBody)
