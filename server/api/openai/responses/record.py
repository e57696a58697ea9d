"""The object of a response before its answer: everything that its request said."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec

from registry.store.catalog import Model
from runtime.messages import Submit
from server.api.openai.moments import now
from server.api.openai.responses.body import ResponseFields, TextFormat, checked_metadata
from server.api.openai.tools import Tool, ToolSet
from server.api.respond import Json


def new_response(body: ResponseFields, model: Model, submit: Submit, tools: ToolSet) -> Json:
    """The object, with all keys of the published API that say something here. Raises BadRequest."""
    reasoning = body.reasoning
    return {
        "id": f"resp_{secrets.token_hex(24)}",
        "object": "response",
        "created_at": now(),
        "status": "in_progress",
        "background": bool(body.background),
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": None if submit.limits.max_tokens < 0 else submit.limits.max_tokens,
        "max_tool_calls": None,
        "metadata": checked_metadata(body.metadata),
        "model": body.model or model.name,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {
            "effort": reasoning.effort if reasoning else None,
            "summary": (reasoning.summary or reasoning.generate_summary) if reasoning else None,
        },
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.keeps,
        "temperature": submit.sampling.temperature,
        "text": {"format": _format(body), "verbosity": "medium"},
        "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
        "tools": [_told(tool, tools) for tool in tools.tools],
        "top_logprobs": max(submit.logprobs, 0),
        "top_p": submit.sampling.top_p,
        "truncation": "auto" if submit.truncate else "disabled",
        "usage": None,
        "user": body.user,
    }


def _format(body: ResponseFields) -> Json:
    given = (body.text and body.text.format) or TextFormat()
    if given.type != "json_schema":
        return {"type": given.type}
    schema = msgspec.json.decode(given.schema)
    return {"type": "json_schema", "name": given.name, "description": None, "schema": schema, "strict": True}


def _told(tool: Tool, tools: ToolSet) -> dict[str, Any]:
    """A tool as the service tells it; tools of a namespace stand alone, under their full names."""
    function = tool["function"]
    about = {"name": function["name"], "description": function["description"] or None}
    if tools.client_name(function["name"]).kind == "custom":
        pattern = function["parameters"]["properties"]["input"].get("pattern")
        grammar = {"type": "grammar", "syntax": "regex", "definition": pattern}
        return {"type": "custom", **about, "format": grammar if pattern else {"type": "text"}}
    strict = function.get("strict") is True
    return {"type": "function", **about, "parameters": function["parameters"], "strict": strict}
