"""Tools of Anthropic's dialect: a client runs them; tools that the hosted service runs are left out and named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from runtime.errors import BadRequest
from server.api.calls import checked_tools
from server.errors import Unsupported


class AnthropicTool(msgspec.Struct):
    """A tool. Tools of a `type` other than `custom` are Anthropic's own and come without a schema."""

    name: str = ""
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    input_examples: list[Any] | None = None
    strict: bool | None = None
    allowed_callers: list[str] | None = None
    eager_input_streaming: bool | None = None
    cache_control: Any = None

    @property
    def is_own(self) -> bool:
        """Whether it is one of Anthropic's own, or may be called by those alone."""
        direct = self.allowed_callers is None or "direct" in self.allowed_callers
        return self.type not in (None, "custom") or not direct

    @property
    def shown(self) -> str:
        """It as a warning names it."""
        return f"the tool `{(self.name or self.type or '')[:64]}` (there is nothing here that runs `{self.type}`)"

    def function(self, number: int) -> dict[str, Any]:
        """It in the words of chat templates; `number` is its place in the list. Raises BadRequest."""
        schema = self.input_schema
        if schema is None or schema.get("type", "object") != "object":
            hint = 'send a JSON schema of an object, such as `{"type": "object", "properties": {}}`'
            raise BadRequest(f"`tools[{number}]` has no `input_schema` of an object", hint, "tools")
        description = self.description or ""
        if self.input_examples:
            examples = "\n".join(json.dumps(each, ensure_ascii=False) for each in self.input_examples)
            description = f"{description}\nExamples of its input:\n{examples}".strip()
        function: dict[str, Any] = {"name": self.name, "description": description, "parameters": schema}
        return {"type": "function", "function": function | ({"strict": True} if self.strict else {})}


class AnthropicChoice(msgspec.Struct):
    """Which tools the answer may, or must, call."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Toolbox(NamedTuple):
    """The tools of a request as the engine takes them: all, the names of which one must be called, one call only.

    `left_out` names tools that nothing here runs, for the warning.
    """

    tools: list[dict[str, Any]]
    forced: list[str]
    single: bool
    left_out: list[str]


def toolbox(given: Sequence[AnthropicTool] | None, choice: AnthropicChoice | None) -> Toolbox:
    """The tools of a request. Raises BadRequest, and Unsupported where a tool is demanded that nothing here runs."""
    tools = given or []
    functions = [tool.function(number) for number, tool in enumerate(tools) if not tool.is_own]
    usable = checked_tools(functions)
    left_out = [tool.shown for tool in tools if tool.is_own]
    choice = choice or AnthropicChoice("auto")
    single = bool(choice.disable_parallel_tool_use)
    names = [tool["function"]["name"] for tool in usable]
    match choice.type:
        case "auto":
            return Toolbox(usable, [], single, left_out)
        case "none":
            return Toolbox([], [], single, left_out)
        case "any":
            if not names:
                raise BadRequest("`tool_choice` is `any`, and there is no tool to call", "send `tools`", "tool_choice")
            return Toolbox(usable, names, single, left_out)
        case "tool":
            if choice.name is not None and choice.name in names:
                return Toolbox(usable, [choice.name], single, left_out)
            if any(tool.name == choice.name for tool in tools):
                message = f"`tool_choice` names `{choice.name}`, and nothing here runs this tool"
                raise Unsupported(message, "choose a tool with an `input_schema`", "tool_choice")
    shown = choice.type[:40] if choice.type != "tool" else str(choice.name)[:64]
    hint = "it is auto, any, none, or tool with the `name` of one of the tools"
    raise BadRequest(f"`tool_choice` is `{shown}`", hint, "tool_choice")
