"""The body of `/v1/responses`."""

from __future__ import annotations

from typing import Any

import msgspec

from runtime.errors import BadRequest
from runtime.messages import Grammar
from server.api import grammars
from server.api.adapters import AdapterFields
from server.api.fields import KnownFields
from server.api.openai.fields import OPENAI
from server.api.openai.responses.items import InputItem
from server.api.options import Whole, with_sampling

MAX_PAIRS, MAX_PAIR_NAME, MAX_PAIR_VALUE = 16, 64, 512
# Values of `include`. Values about hosted tools and images ask for parts that no answer here has.
ENCRYPTED, LOGPROBS = "reasoning.encrypted_content", "message.output_text.logprobs"
_NOTHING_TO_INCLUDE = (
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)
KNOWN = KnownFields(
    binding={
        **{name: hint for name, hint in OPENAI.binding.items() if name != "max_output_tokens"},
        "prompt": "send the text in `instructions` and `input`",
        "conversation": "use `previous_response_id`",
        "response_format": "use `text.format`",
        "max_tokens": "use `max_output_tokens`",
        "max_completion_tokens": "use `max_output_tokens`",
        "messages": "use `input`",
        "n": "send several requests",
    },
    noted={
        **OPENAI.noted,
        "access_programs": None,
        "background_options": None,
        "context_management": None,
        "image": None,
    },
    # Built-in tools alone are counted by `max_tool_calls`, and there are none; parts of items as answers have them.
    idle=OPENAI.idle
    | {
        "max_tool_calls",
        "input[].status",
        "input[].phase",
        "input[].content[].annotations",
        "input[].content[].logprobs",
        "text.format.description",
        "text.format.strict",
    },
)


class TextFormat(msgspec.Struct):
    """`text.format`: plain text, any JSON object, or JSON by a schema."""

    type: str = "text"
    schema: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    name: str = "answer"


class TextConfig(msgspec.Struct):
    """The form of the answer's text."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ReasoningConfig(msgspec.Struct):
    """How hard to think, and whether a summary is wanted."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class EventOptions(msgspec.Struct):
    """Wishes about a stream. Padding against traffic analysis is not made."""

    include_obfuscation: bool | None = None


class CountedFields(msgspec.Struct, kw_only=True):
    """The fields that the prompt is made of; `/v1/responses/input_tokens` takes no others."""

    model: str | None = None
    input: str | list[InputItem] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningConfig | None = None
    text: TextConfig | None = None
    truncation: str | None = None
    adapters: AdapterFields = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def held_to(self) -> Grammar | None:
        """The grammar of the answer. Raises BadRequest."""
        given = self.text.format if self.text else None
        if given is None or given.type == "text":
            return None
        if given.type == "json_object":
            return Grammar("json")
        if given.type != "json_schema":
            known = "known are text, json_object and json_schema"
            raise BadRequest(f"there is no `text.format` of type `{given.type[:40]}`", known, "text.format")
        if bytes(given.schema) in (b"", b"null"):
            raise BadRequest("`text.format` has no schema", "send it in `text.format.schema`", "text.format")
        return grammars.of_schema(given.schema, "text.format")

    @property
    def cuts(self) -> bool:
        """Whether the oldest turns make way where the conversation is too long. Raises BadRequest."""
        if self.truncation not in (None, "auto", "disabled"):
            raise BadRequest(f"`truncation` is `{self.truncation[:40]}`", "send auto or disabled", "truncation")
        return self.truncation == "auto"


class ResponseFields(CountedFields, kw_only=True):
    """The fields of `/v1/responses`, without the sampling options, which `with_sampling` adds."""

    background: bool | None = None
    draft: str | None = None
    draft_num_predict: Whole | None = None
    grammar: str | grammars.GrammarField | None = None
    include: list[str] | None = None
    max_output_tokens: Whole | None = None
    metadata: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    stop: str | list[str] | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: EventOptions | None = None
    top_logprobs: Whole | None = None
    user: str | None = None

    @property
    def keeps(self) -> bool:
        """Whether the response is stored, as it is where nothing is said."""
        return self.store is not False

    @property
    def grammar_of_answer(self) -> Grammar | None:
        """The one grammar of the answer. Raises BadRequest."""
        return grammars.only(**{"text.format": self.held_to, "grammar": grammars.of_field(self.grammar)})

    def includes(self, name: str) -> bool:
        """Whether `include` names this."""
        return name in (self.include or [])

    @property
    def passed_over(self) -> list[str]:
        """Values that change nothing here, as the warning names them."""
        known = (ENCRYPTED, LOGPROBS, *_NOTHING_TO_INCLUDE)
        found = [f"`include` of `{name[:40]}`" for name in self.include or [] if name not in known]
        given = {
            "text.verbosity": self.text and self.text.verbosity not in (None, "medium"),
            "stream_options.include_obfuscation": self.stream_options and self.stream_options.include_obfuscation,
            "service_tier": self.service_tier not in (None, "auto", "default"),
        }
        return [*found, *(f"`{name}`" for name, asks in given.items() if asks)]


def checked_metadata(given: dict[str, Any] | None) -> dict[str, str]:
    """The pairs that a client adds to an object of its own. Raises BadRequest."""
    pairs = given or {}
    fits = len(pairs) <= MAX_PAIRS and all(
        len(name) <= MAX_PAIR_NAME and isinstance(value, str) and len(value) <= MAX_PAIR_VALUE
        for name, value in pairs.items()
    )
    if not fits:
        hint = f"send up to {MAX_PAIRS} texts of {MAX_PAIR_VALUE} characters, names of {MAX_PAIR_NAME}"
        raise BadRequest("`metadata` is too large, or holds more than texts", hint, "metadata")
    return pairs


RESPONSE_BODY = with_sampling(ResponseFields)
