"""Parts of a request that come from files and pipes: piped text, forms of answers, definitions of tools."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from cli.errors import Failure
from runtime.defaults import MAX_BODY

Line = dict[str, Any]

# The names that parameters of a tool have in other programs: Anthropic's, and MCP's.
_PARAMETERS = ("parameters", "input_schema", "inputSchema")


def question(words: tuple[str, ...]) -> str | None:
    """Piped text and the prompt after it, as in Ollama; None when there is neither, empty for an empty pipe."""
    prompt = " ".join(words)
    piped = None if sys.stdin is None or sys.stdin.isatty() else _piped()
    if any(0xD800 <= ord(letter) < 0xE000 for letter in prompt):
        raise Failure("the prompt is no text (UTF-8)", "convert it first", "usage")
    if piped is None:
        return prompt or None
    return "\n\n".join(part for part in (piped, prompt) if part)


def _piped() -> str:
    """The text on standard input, which may have no end. Raises Failure."""
    data = sys.stdin.buffer.read(MAX_BODY + 1)
    if len(data) > MAX_BODY:
        hint = "pipe less in: no context holds so much text"
        raise Failure(f"what was piped in is larger than {MAX_BODY >> 20} MiB", hint, "usage")
    try:
        return data.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise Failure("what was piped in is no text (UTF-8)", "convert it first", "usage") from None


def answer_form(wanted: str) -> str | Line:
    """The form of the answers: "json", or the JSON schema in a file. Raises Failure."""
    if wanted == "json":
        return wanted
    schema = _json_of(wanted, "the form of answers is `json`, or a file with a JSON schema")
    if not isinstance(schema, dict):
        raise Failure(f"`{wanted}` holds no JSON schema", 'it is an object such as `{"type": "object"}`', "usage")
    return schema


def tools_of(path: str) -> list[Line]:
    """The definitions of tools in a file: a list of them, one alone, or an object with the list as `tools`.

    A definition has OpenAI's form (`{"type": "function", "function": {…}}`), or is the function alone, whose parameters
    may have Anthropic's or MCP's name. Raises Failure.
    """
    content = _json_of(path, "`--tools` is a file with definitions of tools")
    found = content.get("tools", content) if isinstance(content, dict) else content
    tools = [_tool(each) for each in (found if isinstance(found, list) else [found])]
    if not tools or None in tools:
        hint = 'a definition is `{"name": "…", "description": "…", "parameters": {JSON schema}}`'
        raise Failure(f"`{path}` holds no definitions of tools", hint, "usage")
    return [tool for tool in tools if tool is not None]


def _tool(given: Any) -> Line | None:
    if not isinstance(given, dict) or isinstance(given.get("function"), dict):
        return given if isinstance(given, dict) else None
    if not isinstance(given.get("name"), str):
        return None
    schema = next((given[key] for key in _PARAMETERS if key in given), {"type": "object", "properties": {}})
    about = {key: given[key] for key in ("name", "description") if key in given}
    return {"type": "function", "function": about | {"parameters": schema}}


def _json_of(path: str, hint: str) -> Any:
    try:
        return json.loads(Path(path).expanduser().read_text("utf-8"))
    except OSError as error:
        raise Failure(f"`{path}` cannot be read: {error.strerror}", hint, "usage") from None
    except (ValueError, RecursionError) as error:
        raise Failure(f"`{path}` is not JSON: {error}", "correct it", "usage") from None
