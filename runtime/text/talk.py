"""Turns, tools and the wish to think, in the words of chat templates.

Messages have the keys of Hugging Face's `apply_chat_template`. The variables that switch thinking differ by family, so
all known ones are given; a template looks at its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.answers.learning import Learned
from runtime.conversation import ToolCall, Turn
from runtime.errors import BadRequest
from runtime.text.shapes import Message


def messages_of(turns: Sequence[Turn], learned: Learned | None = None) -> list[Message]:
    """The turns as messages, with calls and their results as the template wants them; None for turns without any.

    Raises BadRequest for arguments that are no JSON object, and for a result that answers no call.
    """
    if learned is not None:
        turns = with_names(turns, as_ids=learned.names_in_ids)
        turns = turns if learned.parallel else _one_by_one(turns)
    return [_message(turn, as_text=learned is not None and learned.as_text) for turn in turns]


def tool_variables(tools: list[dict[str, Any]]) -> dict[str, Any]:
    """The variables by which templates know `tools`; none without tools."""
    return {"tools": tools, "functions": json.dumps(tools, ensure_ascii=False, indent=4)} if tools else {}


def without_tools(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables, but for the tools in them."""
    return {name: value for name, value in variables.items() if name not in ("tools", "functions")}


def thinking_variables(think: bool | str | None) -> dict[str, Any]:
    """The variables that switch thinking on or off, or to an effort; none where nothing is wished."""
    if think is None:
        return {}
    thinks = bool(think)
    variables: dict[str, Any] = {
        "enable_thinking": thinks,
        "thinking": thinks,
        "thinking_mode": "enabled" if thinks else "disabled",
    }
    if not thinks:
        # The least that templates without a switch know.
        return variables | {"thinking_budget": 0, "reasoning_effort": "low"}
    if isinstance(think, str):
        variables |= {"reasoning_effort": think, "thinking_effort": "high" if think == "medium" else think}
    return variables


def _message(turn: Turn, as_text: bool) -> Message:
    message: Message = {"role": turn.role, "content": turn.text}
    if turn.calls:
        message["tool_calls"] = [
            {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": _arguments(call, as_text)}}
            for call in turn.calls
        ]
    if turn.thinking:
        message |= dict.fromkeys(("reasoning_content", "reasoning", "thinking"), turn.thinking)
    if turn.role == "tool":
        message |= {"tool_call_id": turn.call_id, "name": turn.tool}
    return message


def _arguments(call: ToolCall, as_text: bool) -> Any:
    try:
        value = json.loads(call.arguments)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BadRequest(
            f"the arguments of the call of `{call.name[:64]}` are no JSON object", "send back those that came"
        )
    return call.arguments if as_text else value


def _one_by_one(turns: Sequence[Turn]) -> list[Turn]:
    """The turns with one call each; results follow their own calls."""
    changed: list[Turn] = []
    waiting: list[ToolCall] = []
    for turn in turns:
        if turn.role == "tool" and waiting:
            call = next((each for each in waiting if each.id == turn.call_id), waiting[0])
            waiting.remove(call)
            if changed and changed[-1].role == "tool":
                changed.append(Turn("assistant", [], [call]))
            changed.append(turn)
            continue
        waiting = list(turn.calls)
        if len(waiting) > 1:
            turn = Turn(turn.role, turn.parts, waiting[:1], turn.thinking)
        changed.append(turn)
    return changed


def with_names(turns: Sequence[Turn], *, as_ids: bool = False) -> list[Turn]:
    """The turns, where each result has the id and the tool's name of the call that it answers.

    Dialects give one of both. With `as_ids` the calls get the ids `functions.NAME:N`. Raises BadRequest for a result
    that answers no call.
    """
    waiting: list[tuple[ToolCall, str]] = []  # calls without a result yet, and the ids to write
    named: list[Turn] = []
    count = 0
    for turn in turns:
        if turn.role == "tool":
            call, id_ = waiting.pop(_answered(turn, [call for call, _ in waiting]))
            named.append(Turn(turn.role, turn.parts, call_id=id_, tool=call.name))
            continue
        calls = []
        for call in turn.calls:
            id_ = f"functions.{call.name}:{count}" if as_ids else call.id
            count += 1
            waiting.append((call, id_))
            calls.append(ToolCall(call.name, call.arguments, id_))
        named.append(Turn(turn.role, turn.parts, calls, turn.thinking))
    return named


def with_told_tools(turns: Sequence[Turn], tools: list[dict[str, Any]]) -> list[Turn]:
    """The turns for a model that has to call one of `tools`, and whose template does not tell it how."""
    functions = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    told = (
        'Call one of these functions. Answer with a JSON object alone: {"name": the function\'s name, "arguments": '
        f"an object of its parameters}}.\n\n{functions}"
    )
    return [Turn.of("system", told), *turns]


def _answered(result: Turn, calls: list[ToolCall]) -> int:
    """The place of the call that a result answers: by its id, or its tool's name, or as the next one without both."""
    for wanted, given in ((result.call_id, [call.id for call in calls]), (result.tool, [call.name for call in calls])):
        if wanted and wanted in given:
            return given.index(wanted)
    if calls and not result.call_id and not result.tool:
        return 0
    raise BadRequest(
        f"a tool's result answers no call: `{(result.call_id or result.tool)[:64]}`",
        "send the assistant's message with the call before it",
    )
