"""The body of Anthropic's `/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

from typing import Any

import msgspec

from runtime.errors import BadRequest
from runtime.messages import Grammar
from server.api import grammars
from server.api.adapters import AdapterFields
from server.api.anthropic.blocks import AnthropicMessage, ContentBlock, asks_for_cache
from server.api.anthropic.tools import AnthropicChoice, AnthropicTool
from server.api.grammars import GrammarField
from server.api.options import Whole, with_sampling
from server.api.thinking import effort


class OutputFormat(msgspec.Struct):
    """The form of an answer: JSON by a schema."""

    type: str
    schema: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)

    @property
    def grammar(self) -> Grammar:
        """The grammar that the answer is held to. Raises BadRequest."""
        if self.type != "json_schema":
            raise BadRequest(f"there is no format of type `{self.type[:40]}`", "send `json_schema`", "output_config")
        return grammars.of_schema(self.schema, "output_config")


class OutputConfig(msgspec.Struct):
    """How much effort an answer takes, and its form."""

    effort: str | None = None
    format: OutputFormat | None = None


class ThinkingConfig(msgspec.Struct):
    """Whether to think: `enabled` with a budget in tokens, `adaptive` and `between_tools` as the model likes."""

    type: str
    budget_tokens: Whole | None = None
    display: str | None = None

    @property
    def wish(self) -> bool:
        """Whether the model is to think. Raises BadRequest."""
        match self.type:
            case "disabled":
                return False
            case "adaptive" | "between_tools":
                return True
            case "enabled":
                if self.budget_tokens is None:
                    raise BadRequest(
                        "`thinking` has no `budget_tokens`", "send the most tokens of thinking", "thinking"
                    )
                return True
        raise BadRequest(
            f"there is no `thinking` of type `{self.type[:40]}`", "known are enabled, adaptive, disabled", "thinking"
        )


class MessagesFields(msgspec.Struct, kw_only=True):
    """The fields of both routes, without the sampling options, which `with_sampling` adds."""

    model: str | None = None
    messages: list[AnthropicMessage]
    max_tokens: Whole | None = None
    system: str | list[ContentBlock] | None = None
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    tools: list[AnthropicTool] | None = None
    tool_choice: AnthropicChoice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    cache_control: Any = None
    grammar: str | GrammarField | None = None
    adapters: AdapterFields = None
    draft: str | None = None
    draft_num_predict: Whole | None = None

    @property
    def held_to(self) -> Grammar | None:
        """The grammar of the answer. Raises BadRequest."""
        form = self.output_config.format if self.output_config else None
        return grammars.only(
            output_config=form.grammar if form else None,
            output_format=self.output_format.grammar if self.output_format else None,
            grammar=grammars.of_field(self.grammar),
        )

    @property
    def effort(self) -> str:
        """The effort that is asked for, "" for none."""
        return (self.output_config.effort if self.output_config else None) or ""

    @property
    def thinks(self) -> bool | str | None:
        """The wish to think, with the effort where there is one; without a wish there is no thinking, as published.

        Raises BadRequest.
        """
        level = effort(self.effort or None, "output_config.effort")
        wish = self.thinking is not None and self.thinking.wish
        return level or True if wish else False

    @property
    def hides_thinking(self) -> bool:
        """Whether the client wants signatures instead of the thinking."""
        return self.thinking is not None and self.thinking.display == "omitted"

    @property
    def wants_cache(self) -> bool:
        """Whether a part of the prompt is marked to be kept in the cache."""
        marked = [*(self.system if isinstance(self.system, list) else []), *(self.tools or []), *self.messages]
        return self.cache_control is not None or asks_for_cache(marked)


MESSAGES_BODY = with_sampling(MessagesFields)
