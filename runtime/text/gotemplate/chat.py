"""Conversations in Go templates, by Ollama's rules (`template/template.go`, and its page about templates).

A template that reads `.Messages` gets the whole conversation. An older one has `.System`, `.Prompt` and `.Response` of
one exchange, is written once for each, and the last time only up to its `.Response`. Texts that follow each other in
one role are one message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runtime.text.gotemplate.nodes import Action, Branch, FieldPath, GoTemplateError, Node, Pipe
from runtime.text.gotemplate.parser import fields, parse
from runtime.text.gotemplate.render import render
from runtime.text.gotemplate.values import Record, Spoken

_RESPONSE = Action(Pipe(((FieldPath(("Response",)),),)))
_TYPES = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "array": "any[]"}
_TYPES |= {"object": "Record<string, any>", "null": "null"}
_ORDER = ("type", "$defs", "anyOf", "items", "required", "description", "enum", "properties")
# A word that no conversation has, to find where a rendering of it and of a longer one part.
_PROBE = "lm0probe"


class GoTemplate:
    """A chat template in Go's language; renders as Jinja's templates do (`generate`)."""

    def __init__(self, source: str) -> None:
        """Raises GoTemplateError."""
        nodes = parse(source)
        self.fields = fields(nodes)
        self._whole = "messages" in self.fields
        if not self._whole and "response" not in self.fields:
            nodes = (*nodes, _RESPONSE)
        self._nodes = nodes
        self._last = nodes if self._whole else tuple(_cut(nodes)[0])

    @property
    def capabilities(self) -> list[str]:
        """The capabilities that a model has by this template, in Ollama's words: `tools`, `thinking`, `insert`."""
        names = {"tools": {"tools"}, "thinking": {"thinking", "think", "isthinkset"}, "insert": {"suffix"}}
        return [ability for ability, words in names.items() if words & self.fields]

    def generate(self, **variables: Any) -> Iterator[str]:
        """The conversation `messages`, in the words of Hugging Face's templates. Raises GoTemplateError."""
        messages: list[Mapping[str, Any]] = variables["messages"]
        text = self._text(messages, variables)
        if not variables.get("add_generation_prompt", True):
            longer = self._text([*messages, {"role": "user", "content": _PROBE}], variables)
            same = next((at for at, (one, two) in enumerate(zip(text, longer, strict=False)) if one != two), len(text))
            text = text[:same]
        yield text

    def fill(self, before: str, after: str) -> str:
        """The prompt for the text between two others. Raises GoTemplateError."""
        return render(self._nodes, {"Prompt": before, "Suffix": after, "Response": ""})

    def _text(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
        thinks = variables.get("enable_thinking")
        level = variables.get("reasoning_effort") if thinks else ""
        more = {
            "Think": bool(thinks),
            "ThinkLevel": level if isinstance(level, str) else "",
            "IsThinkSet": thinks is not None,
        }
        system, turns = _collated(messages)
        if self._whole:
            records = [_message(turn) for turn in turns]
            tools = _tools(variables.get("tools") or [])
            return render(self._nodes, {"System": system, "Messages": records, "Tools": tools, "Response": "", **more})
        return self._exchanges(turns, more)

    def _exchanges(self, turns: Sequence[Mapping[str, Any]], more: Mapping[str, Any]) -> str:
        """The conversation in a template for one exchange."""
        texts: list[str] = []
        now = {"System": "", "Prompt": "", "Response": ""}

        def write(nodes: Sequence[Node]) -> None:
            texts.append(render(nodes, {**now, **more}))
            now.update(System="", Prompt="", Response="")

        for turn in turns:
            role, content = turn["role"], turn["content"]
            if role == "system":
                if now["Prompt"] or now["Response"]:
                    write(self._nodes)
                now["System"] = content
            elif role == "user":
                if now["Response"]:
                    write(self._nodes)
                now["Prompt"] = content
            elif role == "assistant":
                now["Response"] = content
            else:
                raise GoTemplateError(f"it knows no role `{str(role)[:40]}`")
        write(self._last)
        return "".join(texts)


def fault_of(source: str) -> str:
    """Why a template cannot be run, a clause; "" where it can be read."""
    try:
        GoTemplate(source)
    except GoTemplateError as error:
        return str(error)
    return ""


def _collated(messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """All instructions as one text, and the messages, joined where one role speaks twice."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        content = message.get("content") or ""
        if not isinstance(content, str):
            raise GoTemplateError("a message is no text")
        turn = {**message, "content": content}
        calls = turn.get("tool_calls") or (turns and turns[-1].get("tool_calls"))
        if turns and turns[-1]["role"] == turn["role"] != "tool" and not calls:
            turns[-1]["content"] += f"\n\n{content}"
        else:
            turns.append(turn)
    system = "\n\n".join(str(message.get("content") or "") for message in messages if message.get("role") == "system")
    return system, turns


def _message(turn: Mapping[str, Any]) -> Record:
    thinking = turn.get("reasoning_content") or turn.get("thinking") or ""
    return Record(
        {
            "Role": turn["role"],
            "Content": turn["content"],
            "Thinking": thinking,
            "Images": [],
            "ToolCalls": [_call(call, number) for number, call in enumerate(turn.get("tool_calls") or [])],
            "ToolName": turn.get("name") or "",
            "ToolCallID": turn.get("tool_call_id") or "",
        },
        {"role": turn["role"], "content": turn["content"]},
    )


def _call(call: Mapping[str, Any], number: int) -> Record:
    function = call["function"]
    arguments = Spoken(function["arguments"], function["arguments"])
    inner = {"Index": number, "Name": function["name"], "Arguments": arguments}
    plain = {"name": function["name"], "arguments": function["arguments"]}
    return Record(
        {"ID": call.get("id") or "", "Function": Record(inner, {"index": number, **plain})}, {"function": plain}
    )


def _tools(tools: Sequence[Mapping[str, Any]]) -> Any:
    found = [_tool(tool) for tool in tools]
    return Spoken(found, [tool.plain for tool in found]) if found else []


def _tool(tool: Mapping[str, Any]) -> Record:
    function = tool.get("function") or {}
    parameters = _schema(function.get("parameters") or {})
    plain: dict[str, Any] = {"name": function.get("name", "")}
    plain |= {"description": function["description"]} if function.get("description") else {}
    plain |= {"parameters": parameters.plain}
    plain |= {key: value for key, value in function.items() if key not in plain}
    inner = {"Name": plain["name"], "Description": function.get("description") or "", "Parameters": parameters}
    kind = tool.get("type") or "function"
    fields = {"Type": kind, "Function": Record(inner, plain, spoken=True)}
    return Record(fields, {"type": kind, "function": plain}, spoken=True)


def _schema(schema: Any) -> Record:
    """A JSON schema as Ollama's types have it: its usual keywords first, in their order, and all others behind them."""
    if not isinstance(schema, Mapping):
        return Record({}, schema)
    given = schema.get("properties")
    properties = {name: _schema(each) for name, each in given.items()} if isinstance(given, Mapping) else {}
    plain = {key: schema[key] for key in _ORDER if key in schema}
    plain |= {key: value for key, value in schema.items() if key not in plain}
    if properties:
        plain["properties"] = {name: each.plain for name, each in properties.items()}
    kind = schema.get("type") or ""
    kinds = kind if isinstance(kind, list) else [kind]
    fields = {
        "Type": kind,
        "Description": schema.get("description") or "",
        "Required": schema.get("required") or [],
        "Enum": schema.get("enum") or [],
        "Items": schema.get("items"),
        "AnyOf": schema.get("anyOf") or [],
        "Properties": properties,
        "ToTypeScriptType": " | ".join(_TYPES.get(str(each), "any") for each in kinds),
    }
    return Record(fields, plain, spoken=True)


def _cut(nodes: Sequence[Node]) -> tuple[list[Node], bool]:
    """The nodes up to the first `.Response` that is written, and whether there is one among them."""
    kept: list[Node] = []
    for node in nodes:
        if isinstance(node, Branch):
            body, ended = _cut(node.body)
            otherwise, other = ([], False) if ended else _cut(node.otherwise)
            kept.append(Branch(node.kind, node.pipe, tuple(body), tuple(otherwise)))
            ended = ended or other
        else:
            kept.append(node)
            ended = isinstance(node, Action) and "response" in fields([node])
        if ended:
            return kept, True
    return kept, False
