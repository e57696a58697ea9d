"""Tools of OpenAI's routes: functions, custom tools and namespaces as the engine's functions, and the choice of them.

The engine knows functions alone. A custom tool, which takes a text, becomes a function with this text as its `input`. A
namespace becomes its tools, each with the namespace's name before its own. Tools that only a hosted service, or a
client by another item, can run are left out and named in the warning.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from runtime.errors import BadRequest
from server.api.calls import MAX_TOOLS, checked_tools

Tool = dict[str, Any]
Kind = Literal["function", "custom"]
_KINDS: tuple[Kind, ...] = ("function", "custom")
# Tools of other types, by the beginnings of their names: OpenAI's service, or its own clients, run them.
_HOSTED = (
    "web_search",
    "file_search",
    "code_interpreter",
    "computer",
    "image_generation",
    "mcp",
    "local_shell",
    "shell",
    "apply_patch",
    "tool_search",
    "programmatic_tool_calling",
)
# Fields of a tool that are honoured, or that ask for no more than is done anyway.
_FIELDS = frozenset({"type", "name", "description", "parameters", "strict", "format", "tools", *_KINDS})
_LONGEST_CHOICE = 60
_HINT = 'send "auto", "none", "required", or the type and the name of one of the tools'


class ToolName(NamedTuple):
    """A tool as its client knows it."""

    kind: Kind
    name: str
    namespace: str = ""


@dataclass
class ToolSet:
    """The tools of a request.

    `tools` are the engine's functions, `names` what these stand for, by their names. `left_out` are the types of tools
    that nobody here can run, `ignored` the fields of tools that change nothing.
    """

    tools: list[Tool] = field(default_factory=list)
    names: dict[str, ToolName] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    ignored: set[str] = field(default_factory=set)

    @property
    def passed_over(self) -> list[str]:
        """Names for the warning."""
        types = [f"the tool `{name}`" for name in dict.fromkeys(self.left_out)]
        return [*types, *(f"`tools[].{name}`" for name in sorted(self.ignored))]

    def client_name(self, name: str) -> ToolName:
        """The tool that the model calls by this name."""
        return self.names.get(name, ToolName("function", name))


class ToolChoice(NamedTuple):
    """The tools that the model may call, and the names of which it has to call one."""

    tools: list[Tool]
    forced: list[str]


def read_tools(given: list[Any] | None) -> ToolSet:
    """The tools of a body, in the form of either route. Raises BadRequest."""
    found = ToolSet()
    if given and len(given) > MAX_TOOLS:
        raise BadRequest(f"`tools` has {len(given)} entries", f"send {MAX_TOOLS} or fewer", "tools")
    functions = []
    for number, tool in enumerate(given or []):
        for namespace, each in _flat(tool, number, found):
            kind, inner = each.get("type", "function"), _inner(each)
            if not inner:
                raise _no_function(number)
            name = inner.get("name")
            if namespace and isinstance(name, str):
                inner = inner | {"name": f"{namespace}.{name}"}
            functions.append(_as_function(kind, inner, number))
            found.names[str(inner.get("name"))] = ToolName(kind, str(name), namespace)
    found.tools = checked_tools(functions)
    return found


def choose(choice: Any, given: ToolSet) -> ToolChoice:
    """The tools that `tool_choice` leaves, and those it demands. Raises BadRequest."""
    everything = [tool["function"]["name"] for tool in given.tools]
    if choice == "none":
        return ToolChoice([], [])
    if choice in (None, "auto"):
        return ToolChoice(given.tools, [])
    if choice == "required":
        return ToolChoice(given.tools, _some(everything, given))
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "allowed_tools":
        return _allowed(choice, given)
    if isinstance(kind, str) and kind in _KINDS:
        return ToolChoice(given.tools, [_named(choice, given)])
    if isinstance(kind, str) and kind.startswith(_HOSTED):
        raise BadRequest(f"`tool_choice` demands `{kind[:40]}`, which nothing here runs", _HINT, "tool_choice")
    raise BadRequest(f"`tool_choice` is {_shown(choice)}", _HINT, "tool_choice")


def text_input(arguments: str) -> str:
    """The text that a call of a custom tool has, from the arguments of the function in its place."""
    try:
        found = json.loads(arguments)
    except ValueError:
        return arguments
    given = found.get("input", arguments) if isinstance(found, dict) else arguments
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)


def text_arguments(text: str) -> str:
    """The arguments of the function that stands for a custom tool called with this text."""
    return json.dumps({"input": text}, ensure_ascii=False)


def full_name(name: str, namespace: str | None) -> str:
    """The name of the engine's function for a tool."""
    return f"{namespace}.{name}" if namespace else name


def _flat(tool: Any, number: int, found: ToolSet) -> Iterator[tuple[str, Tool]]:
    """A tool, or the tools of a namespace, each with the namespace's name; what is left out is noted in `found`."""
    if not isinstance(tool, dict):
        raise _no_function(number)
    kind = tool.get("type", "function")
    if kind == "namespace":
        inner = _inner(tool)
        name, tools = inner.get("name"), inner.get("tools")
        if not isinstance(name, str) or not name or not isinstance(tools, list):
            message = f"`tools[{number}]` is a namespace without `name` or `tools`"
            raise BadRequest(message, "send both", "tools")
        for each in tools:
            for _, flat in _flat(each, number, found):
                yield name, flat
    elif kind in _KINDS:
        given = _inner(tool)
        found.ignored |= {str(key)[:40] for key, value in given.items() if value and key not in _FIELDS}
        yield "", tool
    else:
        found.left_out.append(str(kind)[:40])


def _no_function(number: int) -> BadRequest:
    hint = 'send `{"type": "function", "name": …}`, in chats `{"type": "function", "function": {"name": …}}`'
    return BadRequest(f"`tools[{number}]` is no function", hint, "tools")


def _inner(tool: Tool) -> Tool:
    """The description of a tool, which stands under the type's name in `/v1/chat/completions`."""
    inner = tool.get(tool.get("type", "function"))
    return inner if isinstance(inner, dict) else {key: value for key, value in tool.items() if key != "type"}


def _as_function(kind: Kind, inner: Tool, number: int) -> Tool:
    if kind == "function":
        return {"type": "function", "function": {key: inner[key] for key in inner if inner[key] is not None}}
    given = inner.get("format") or {"type": "text"}
    schema: Tool = {"type": "string"}
    about = str(inner.get("description") or "")
    strict = False
    if not isinstance(given, dict) or given.get("type") not in ("text", "grammar"):
        raise BadRequest(f"the `format` of `tools[{number}]` is unknown", "known are text and grammar", "tools")
    if given["type"] == "grammar":
        inner_grammar = given.get("grammar")
        grammar = inner_grammar if isinstance(inner_grammar, dict) else given
        if grammar.get("syntax") != "regex" or not isinstance(grammar.get("definition"), str):
            raise BadRequest(
                f"`tools[{number}]` is held to a grammar that is no regular expression",
                "send `syntax: regex`, or leave `format` out",
                "tools",
            )
        schema["pattern"], strict = f"^(?:{grammar['definition']})$", True
    parameters = {"type": "object", "properties": {"input": schema}, "required": ["input"]}
    function = {"name": inner.get("name"), "description": about, "parameters": parameters}
    return {"type": "function", "function": function | ({"strict": True} if strict else {})}


def _allowed(choice: Tool, given: ToolSet) -> ToolChoice:
    inner = choice.get("allowed_tools")
    inner = inner if isinstance(inner, dict) else choice
    tools, mode = inner.get("tools"), inner.get("mode", "auto")
    if not isinstance(tools, list) or mode not in ("auto", "required"):
        hint = 'send `{"type": "allowed_tools", "mode": "auto", "tools": […]}`'
        raise BadRequest("`tool_choice` allows no list of tools", hint, "tool_choice")
    runnable = [each for each in tools if not (isinstance(each, dict) and str(each.get("type")).startswith(_HOSTED))]
    names = [_named(each, given) for each in runnable]
    if mode == "required":
        return ToolChoice(given.tools, _some(names, given))
    return ToolChoice([tool for tool in given.tools if tool["function"]["name"] in names], [])


def _named(choice: Any, given: ToolSet) -> str:
    """The name of the engine's function that a choice names. Raises BadRequest."""
    inner = _inner(choice) if isinstance(choice, dict) else {}
    name = full_name(str(inner.get("name")), inner.get("namespace"))
    if name not in given.names:
        raise BadRequest(f"`tool_choice` is {_shown(choice)}, and there is no such tool", _HINT, "tool_choice")
    return name


def _shown(choice: Any) -> str:
    """The beginning of a choice as the client wrote it."""
    text = json.dumps(choice, ensure_ascii=False)
    return f"`{text[:_LONGEST_CHOICE]}`" + (" …" if len(text) > _LONGEST_CHOICE else "")


def _some(names: list[str], given: ToolSet) -> list[str]:
    if not names:
        left = f"nothing here runs `{given.left_out[0]}`" if given.left_out else "there is none"
        raise BadRequest(f"`tool_choice` demands a call of a tool, and {left}", _HINT, "tool_choice")
    return names
