"""Content blocks of Anthropic's messages, and the turns that they become."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from runtime.conversation import Text, ToolCall, Turn
from runtime.errors import BadRequest
from server.api.content import refuse_part

# The first system block of a coding agent: it changes with each request, and would keep the cache from being used.
_BILLING = "x-anthropic-billing-header:"
_LONGEST_BILLING = 300
# How the signature of a thinking that was not shown begins; the thinking itself follows in base64.
_CARRIED = "lm-thinking:"
_ROLES = ("user", "assistant", "system")
# Blocks of tools that the hosted service ran: the answers to them are in the text that follows.
_HOSTED = ("server_tool_use", "mcp_tool_use", "container_upload", "compaction")


class BlockSource(msgspec.Struct):
    """Where the content of a document comes from."""

    type: str = ""
    data: str | None = None


class ContentBlock(msgspec.Struct):
    """A block of a message, of the system's text or of a tool's result; which fields count depends on its `type`."""

    type: str
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    id: str | None = None
    name: str | None = None
    input: Any = None
    tool_use_id: str | None = None
    tool_name: str | None = None
    content: str | list[ContentBlock] | None = None
    is_error: bool | None = None
    source: BlockSource | str | None = None
    title: str | None = None
    context: str | None = None
    cache_control: Any = None


class AnthropicMessage(msgspec.Struct):
    """One message of a conversation."""

    role: str
    content: str | list[ContentBlock]

    @property
    def blocks(self) -> list[ContentBlock]:
        """Its content as blocks."""
        return [ContentBlock("text", self.content)] if isinstance(self.content, str) else self.content


def system_text(system: str | Sequence[ContentBlock] | None) -> str:
    """The system's text, "" for none. Raises BadRequest, Unsupported for a block that is no text."""
    blocks = [ContentBlock("text", system)] if isinstance(system, str) else system or []
    texts = [_text(block, "system") for block in blocks]
    return "\n".join(text for text in texts if not _is_billing(text))


def turns_of(messages: Iterable[AnthropicMessage]) -> list[Turn]:
    """The conversation as turns: results of tools before a user's words, neighbours of one role as one turn.

    Raises BadRequest for a role or a block that is none, Unsupported for images and documents.
    """
    turns: list[Turn] = []
    for message in messages:
        if message.role not in _ROLES:
            hint = "roles are user, assistant, and system"
            raise BadRequest(f"there is no role `{message.role[:40]}`", hint, "messages")
        for turn in _assistants(message) if message.role == "assistant" else _users(message):
            if turns and turns[-1].role == turn.role != "tool":
                _join(turns[-1], turn)
            else:
                turns.append(turn)
    return turns


def hosted_kinds(messages: Iterable[AnthropicMessage]) -> list[str]:
    """The types of blocks that are left out of the conversation, each once."""
    kinds = (block.type[:40] for message in messages for block in message.blocks if _is_hosted(block))
    return list(dict.fromkeys(kinds))


def asks_for_cache(blocks: Iterable[Any]) -> bool:
    """Whether one of these blocks, messages or tools, or a block within one, has a `cache_control`."""
    return any(
        getattr(block, "cache_control", None) is not None or asks_for_cache(_within(getattr(block, "content", None)))
        for block in blocks
    )


def carried(thinking: str) -> str:
    """A signature that brings a thinking back which the client does not see."""
    return _CARRIED + base64.b64encode(thinking.encode()).decode()


def _within(content: Any) -> list[ContentBlock]:
    return content if isinstance(content, list) else []


def _join(turn: Turn, more: Turn) -> None:
    turn.parts = [Text(joined)] if (joined := "\n".join(filter(None, (turn.text, more.text)))) else []
    turn.calls += more.calls
    turn.thinking += more.thinking


def _users(message: AnthropicMessage) -> Iterator[Turn]:
    """The turns of a message of the user, or of the system."""
    blocks = [block for block in message.blocks if not _is_hosted(block)]
    for block in blocks:
        if block.type == "tool_result":
            if not block.tool_use_id:
                raise BadRequest("a `tool_result` has no `tool_use_id`", "send the id of the call", "messages")
            yield Turn("tool", [Text(_result(block))], call_id=block.tool_use_id)
    texts = [_text(block, "messages") for block in blocks if block.type != "tool_result"]
    if texts or not message.blocks:
        yield Turn(message.role, [Text("\n".join(texts))])


def _assistants(message: AnthropicMessage) -> Iterator[Turn]:
    turn = Turn("assistant", [])
    texts: list[str] = []
    for block in message.blocks:
        match block.type:
            case "thinking":
                turn.thinking += _thinking(block)
            case "redacted_thinking":
                continue
            case "tool_use":
                turn.calls.append(_call(block))
            case _ if not _is_hosted(block):
                texts.append(_text(block, "messages"))
    text = "".join(texts)
    turn.parts = [Text(text)] if text else []
    yield turn


def _thinking(block: ContentBlock) -> str:
    signature = block.signature or ""
    if block.thinking or not signature.startswith(_CARRIED):
        return block.thinking or ""
    try:
        return base64.b64decode(signature.removeprefix(_CARRIED), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise BadRequest("the `signature` of a thinking is damaged", "send back what came", "messages") from None


def _call(block: ContentBlock) -> ToolCall:
    if not block.name or not isinstance(block.input, dict | None):
        raise BadRequest(
            "a `tool_use` has no `name`, or an `input` that is no object", "send back the call", "messages"
        )
    return ToolCall(block.name, json.dumps(block.input or {}, ensure_ascii=False), block.id or "")


def _result(block: ContentBlock) -> str:
    """The text of a tool's result; one that failed says so."""
    content = block.content or ""
    text = content if isinstance(content, str) else "\n".join(_text(each, "messages") for each in content)
    failed = block.is_error and not text.lower().startswith(("error", "<tool_use_error"))
    return f"Error: {text}" if failed else text


def _text(block: ContentBlock, field: str) -> str:
    """The text of a block of any kind that is one. Raises BadRequest, Unsupported."""
    match block.type:
        case "text":
            if block.text is None:
                raise BadRequest(f"a block of type `text` in `{field}` has no `text`", "send its text", field)
            return block.text
        case "document" if isinstance(block.source, BlockSource) and block.source.type == "text":
            return "\n".join(filter(None, (block.title, block.context, block.source.data)))
        case "search_result":
            found = "\n".join(_text(each, field) for each in _within(block.content))
            source = block.source if isinstance(block.source, str) else ""
            return "\n".join(filter(None, (block.title, source, found)))
        case "tool_reference":
            return block.tool_name or ""
    if block.type in ("image", "document"):
        refuse_part(block.type, field)
    known = "text, thinking, redacted_thinking, tool_use and tool_result"
    raise BadRequest(f"there is no block of type `{block.type[:40]}` in `{field}`", f"known are {known}", field)


def _is_billing(text: str) -> bool:
    return text.startswith(_BILLING) and len(text) <= _LONGEST_BILLING and "\n" not in text.strip()


def _is_hosted(block: ContentBlock) -> bool:
    """Whether a block tells of a tool that the hosted service ran."""
    return block.type in _HOSTED or (block.type != "tool_result" and block.type.endswith("_tool_result"))
