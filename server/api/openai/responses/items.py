"""Items: the pieces of which the input and the output of a response are made, and the turns that they stand for.

An item is kept as its client gets it back: `{"type", "id", …}`. Turns of the assistant are put together from what it
thought, said and called.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from runtime.conversation import Text, ToolCall, Turn
from runtime.errors import BadRequest
from runtime.options import MAX_MESSAGES
from server.api.content import refuse_part
from server.api.openai.tools import full_name, text_arguments

Item = dict[str, Any]
_SEAL = "lm1."
# Ids begin with a word for the type, as the service's do.
_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "custom_tool_call": "ctc",
    "function_call_output": "fco",
    "custom_tool_call_output": "cto",
}
_CALLS = ("function_call", "custom_tool_call")
_RESULTS = ("function_call_output", "custom_tool_call_output")
_TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
# Items of tools and of steps that only the service has. They say nothing that a model here could read.
_HOSTED = frozenset(
    {
        "web_search_call",
        "file_search_call",
        "code_interpreter_call",
        "computer_call",
        "image_generation_call",
        "local_shell_call",
        "local_shell_call_output",
        "shell_call",
        "shell_call_output",
        "apply_patch_call",
        "apply_patch_call_output",
        "tool_search_call",
        "tool_search_output",
        "mcp_call",
        "mcp_list_tools",
        "mcp_approval_request",
        "mcp_approval_response",
        "compaction",
        "compaction_trigger",
        "configuration_update",
        "program",
        "program_output",
    }
)


class ItemPart(msgspec.Struct):
    """A part of an item's content."""

    type: str
    text: str | None = None
    refusal: str | None = None


class InputItem(msgspec.Struct):
    """An item of any type, as a client sends it."""

    type: str = "message"
    id: str | None = None
    role: str | None = None
    content: str | list[ItemPart] | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | None = None
    input: str | None = None
    output: str | list[ItemPart] | None = None
    summary: list[ItemPart] | None = None
    encrypted_content: str | None = None
    tools: list[Any] | None = None


Stored = Callable[[str], Item]
"""The stored item of an id."""


class Input:
    """The input of a response: its items, the tools among them, and words for the warning."""

    def __init__(self, given: str | Sequence[InputItem] | None, stored: Stored) -> None:
        """Raises BadRequest, Unsupported, and as `stored`."""
        self.items: list[Item] = []
        self.tools: list[Any] = []
        self.passed_over: list[str] = []
        entries = [InputItem(role="user", content=given)] if isinstance(given, str) else given or []
        if len(entries) > MAX_MESSAGES:
            raise BadRequest(f"`input` has {len(entries)} entries", f"send {MAX_MESSAGES} or fewer", "input")
        for entry in entries:
            self._add(entry, stored)

    def _add(self, entry: InputItem, stored: Stored) -> None:
        if entry.type == "item_reference" or (entry.id and entry.role is None and entry.type == "message"):
            self.items.append(stored(entry.id or ""))
        elif entry.type == "additional_tools":
            self.tools += entry.tools or []
        elif entry.type in _HOSTED:
            self.passed_over.append(f"items of type `{entry.type}`")
        elif entry.type == "reasoning":
            self.items.append(self._thoughts(entry))
        elif entry.type in _CALLS:
            self.items.append(_call(entry))
        elif entry.type in _RESULTS:
            if not entry.call_id:
                raise BadRequest(f"an item of type `{entry.type}` has no `call_id`", "send the id of the call", "input")
            output = "".join(_texts(entry.output, entry.type))
            self.items.append(new_item(entry.type, entry.id, call_id=entry.call_id, output=output, status="completed"))
        elif entry.type == "message":
            self.items.append(_message(entry))
        else:
            known = ", ".join(["message", "reasoning", *_CALLS, *_RESULTS, "item_reference"])
            raise BadRequest(f"there is no item of type `{entry.type[:40]}`", f"known are {known}", "input")

    def _thoughts(self, entry: InputItem) -> Item:
        content = [] if isinstance(entry.content, str | None) else entry.content
        told = [{"type": "reasoning_text", "text": part.text or ""} for part in content]
        item = new_item("reasoning", entry.id, summary=_summary(entry), content=told)
        if entry.encrypted_content:
            opened = unsealed(entry.encrypted_content)
            if opened is None:
                self.passed_over.append("`input[].encrypted_content` (another server's)")
            item["encrypted_content"] = entry.encrypted_content
        return item


def new_item(kind: str, identity: str | None = None, **fields: Any) -> Item:
    """An item of this type, with an id of its own where it has none."""
    return {"id": identity or f"{_PREFIXES[kind]}_{secrets.token_hex(24)}", "type": kind, **fields}


def output_text(text: str, rows: list[Item] | None = None) -> Item:
    """A part of a message of the assistant, with the probabilities of its tokens."""
    return {"type": "output_text", "annotations": [], "logprobs": rows or [], "text": text}


def sealed(text: str) -> str:
    """The thinking of a model as `encrypted_content`: opaque, and read by any daemon, which needs no key for it."""
    return _SEAL + base64.urlsafe_b64encode(text.encode()).decode()


def unsealed(content: str) -> str | None:
    """The thinking in `encrypted_content`, None where another server made it."""
    if not content.startswith(_SEAL):
        return None
    try:
        return base64.b64decode(content.removeprefix(_SEAL), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        return None


def turns_of(items: Iterable[Item]) -> list[Turn]:
    """The conversation that the items are."""
    turns: list[Turn] = []
    for item in items:
        match item["type"]:
            case "message" if item["role"] == "assistant":
                _assistant(turns, silent=True).parts += [Text(part["text"]) for part in item["content"]]
            case "message":
                role = "system" if item["role"] == "developer" else item["role"]
                turns.append(Turn(role, [Text(part["text"]) for part in item["content"]]))
            case "reasoning":
                _assistant(turns, silent=True).thinking += _thinking(item)
            case "function_call" | "custom_tool_call":
                custom = item["type"] == "custom_tool_call"
                arguments = text_arguments(item["input"]) if custom else item["arguments"]
                call = ToolCall(full_name(item["name"], item.get("namespace")), arguments, item["call_id"])
                _assistant(turns, silent=False).calls.append(call)
            case "function_call_output" | "custom_tool_call_output":
                turns.append(Turn("tool", [Text(item["output"])], call_id=item["call_id"]))
    return [turn for turn in turns if turn.role != "assistant" or turn.parts or turn.calls]


def _assistant(turns: list[Turn], *, silent: bool) -> Turn:
    """The assistant's turn that goes on, or a new one; only one that has said nothing goes on where `silent`."""
    last = turns[-1] if turns else None
    if last is None or last.role != "assistant" or (silent and (last.parts or last.calls)):
        last = Turn("assistant", [], [])
        turns.append(last)
    return last


def _thinking(item: Item) -> str:
    hidden = unsealed(item.get("encrypted_content") or "")
    shown = item.get("content") or item.get("summary") or []
    return hidden or "\n".join(part["text"] for part in shown)


def _summary(entry: InputItem) -> list[Item]:
    return [{"type": "summary_text", "text": part.text or ""} for part in entry.summary or []]


def _message(entry: InputItem) -> Item:
    if entry.role not in ("user", "assistant", "system", "developer"):
        shown = str(entry.role)[:40]
        raise BadRequest(f"there is no role `{shown}`", "roles are user, assistant, system and developer", "input")
    texts = _texts(entry.content, "message")
    if entry.role == "assistant":
        parts = [output_text(text) for text in texts]
    else:
        parts = [{"type": "input_text", "text": text} for text in texts]
    return new_item("message", entry.id, role=entry.role, status="completed", content=parts)


def _call(entry: InputItem) -> Item:
    custom = entry.type == "custom_tool_call"
    text = entry.input if custom else entry.arguments
    if not entry.call_id or not entry.name or text is None:
        needed = f"`call_id`, `name` and `{'input' if custom else 'arguments'}`"
        raise BadRequest(f"an item of type `{entry.type}` lacks a field", f"it has {needed}", "input")
    item = new_item(entry.type, entry.id, call_id=entry.call_id, name=entry.name, status="completed")
    item |= {"namespace": entry.namespace} if entry.namespace else {}
    return item | ({"input": text} if custom else {"arguments": text or "{}"})


def _texts(content: str | list[ItemPart] | None, kind: str) -> list[str]:
    """The texts of a content. Raises BadRequest without any, Unsupported for images, audio and files."""
    if content is None:
        raise BadRequest(f"an item of type `{kind}` has no content", "send a text", "input")
    if isinstance(content, str):
        return [content]
    texts = []
    for part in content:
        if part.type == "refusal":
            texts.append(part.refusal or "")
        elif part.type not in _TEXTS:
            refuse_part(part.type, "input")
        elif part.text is None:
            raise BadRequest(f"a part of type `{part.type}` has no `text`", "send its text", "input")
        else:
            texts.append(part.text)
    return texts
