"""Tools and their calls, in the words that Ollama's and OpenAI's dialects share."""

from __future__ import annotations

import json
import re
import secrets
import string
from typing import Any

import msgspec

from runtime.conversation import ToolCall
from runtime.errors import BadRequest

MAX_TOOLS = 512
_LETTERS = string.ascii_letters + string.digits
_NAME = re.compile(r"[\w./-]{1,128}")
# Variables of templates that a request may not set: they come from its other fields, or from the model.
_TAKEN = frozenset({"messages", "tools", "functions", "add_generation_prompt", "bos_token", "eos_token"})


class CalledFunction(msgspec.Struct):
    """The function of a call. Ollama's dialect has its arguments as an object, OpenAI's as the text of one."""

    name: str
    arguments: str | dict[str, Any] | None = None


class Called(msgspec.Struct):
    """A call in a message of the assistant."""

    function: CalledFunction
    id: str | None = None

    def call(self) -> ToolCall:
        """The call; raises BadRequest for arguments that are no JSON object."""
        arguments = self.function.arguments or "{}"
        return ToolCall(
            self.function.name, arguments if isinstance(arguments, str) else json.dumps(arguments), self.id or ""
        )


def call_id() -> str:
    """An id for a call. Some templates want nine letters and digits."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))


def checked_tools(given: list[Any] | None) -> list[dict[str, Any]]:
    """The tools of a request; raises BadRequest for what is none."""
    if given and len(given) > MAX_TOOLS:
        raise BadRequest(f"`tools` has {len(given)} entries", f"send {MAX_TOOLS} or fewer", "tools")
    tools = [_checked(tool, number) for number, tool in enumerate(given or [])]
    names = [tool["function"]["name"] for tool in tools]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadRequest(f"two tools are named `{twice}`", "rename one", "tools")
    return tools


def _checked(tool: Any, number: int) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.get("type", "function") != "function":
        hint = 'send `{"type": "function", "function": {"name": …, "parameters": …}}`'
        raise BadRequest(f"`tools[{number}]` is no function", hint, "tools")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        shown = str(name)[:40]
        hint = "names have 1 to 128 letters, digits, `_`, `-`, `.` and `/`"
        raise BadRequest(f"`tools[{number}]` has no usable name: `{shown}`", hint, "tools")
    schema = function.get("parameters")
    if schema is not None and not _is_schema(schema):
        hint = 'send a JSON schema of an object, such as `{"type": "object", "properties": {}}`'
        raise BadRequest(f"the `parameters` of the tool `{name}` are no JSON schema of an object", hint, "tools")
    empty = {"type": "object", "properties": {}}
    return {"type": "function", "function": {"description": "", **function, "parameters": schema or empty}}


def _is_schema(schema: Any) -> bool:
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        return False
    properties = schema.get("properties", {})
    return isinstance(properties, dict) and all(isinstance(each, dict | bool) for each in properties.values())


def template_variables(given: dict[str, Any] | None) -> dict[str, Any]:
    """A request's variables for the model's template; raises BadRequest for reserved names."""
    if taken := sorted(_TAKEN & set(given or {})):
        message = f"`chat_template_kwargs` may not set `{taken[0]}`"
        raise BadRequest(message, "use the field of the request", "chat_template_kwargs")
    return given or {}
