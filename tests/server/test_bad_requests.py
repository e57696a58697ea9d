"""Tools, results, schemas and grammars that are none: a 400 at once in the form of either dialect, by a live worker."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests import templates
from tests.daemon import Daemon, allowed
from tests.server.test_held import named, with_template

QUESTION = {"role": "user", "content": "x"}
RESULT = {"role": "tool", "tool_call_id": "a1", "content": "3"}
PATHS = ("/v1/chat/completions", "/api/chat")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("bad")
    with Daemon(home, runtime="llama") as daemon:
        for name, template in (("caller", templates.TOOLS), ("looping", templates.LOOPING)):
            folder = with_template(home / name, template)
            assert daemon.post("/api/pull", {"model": str(folder)}).lines[-1]["status"] == "success"
            assert daemon.post(PATHS[0], body(PATHS[0], named(daemon, name), {})).status == 200
        yield daemon


class Bad(NamedTuple):
    """What a request has beside its question, the words of its refusal, and the field that OpenAI's dialect names."""

    fields: dict[str, Any]
    words: str
    param: str
    model: str = "caller"


def tools(parameters: Any, name: str = "f", **more: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": name, "parameters": parameters, **more}}]}


def properties(schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": schema}, "required": ["a"]}


def talk(*messages: dict[str, Any]) -> dict[str, Any]:
    return tools({}) | {"messages": [QUESTION, *messages]}


def called(arguments: str) -> dict[str, Any]:
    call = {"id": "a1", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        schema = properties(schema)
    return schema


REMOTE = properties({"$ref": "http://127.0.0.1:9/a.json"})
BAD = {
    "a tool that is none": Bad({"tools": ["f"]}, "is no function", "tools"),
    "a tool without a name": Bad(tools({}, ""), "no usable name", "tools"),
    "parameters that are no schema": Bad(tools("text"), "no JSON schema", "tools"),
    "parameters of a list": Bad(tools({"type": "array"}), "no JSON schema", "tools"),
    "properties that are a list": Bad(tools({"properties": ["a"]}), "no JSON schema", "tools"),
    "a name of 10,000 letters": Bad(tools({}, "f" * 10_000), "no usable name", "tools"),
    "a strict tool with a keyword": Bad(
        tools(properties({"uniqueItems": True}), strict=True), "`uniqueItems`", "tools"
    ),
    "a strict tool with a remote reference": Bad(tools(REMOTE, strict=True), "$ref", "tools"),
    "a strict tool with a pattern": Bad(
        tools(properties({"type": "string", "pattern": "(a{1000}){1000}"}), strict=True), "`pattern`", "tools"
    ),
    "a strict tool that never ends": Bad(
        tools({"$ref": "#/$defs/a", "$defs": {"a": properties({"$ref": "#/$defs/a"})}}, strict=True), "f", "tools"
    ),
    "a result without a call": Bad(talk(RESULT), "answers no call", "messages"),
    "an id that answers nothing": Bad(
        talk(called("{}"), RESULT | {"tool_call_id": "zz"}), "answers no call", "messages"
    ),
    "two results of one call": Bad(talk(called("{}"), RESULT, RESULT), "answers no call", "messages"),
    "arguments that are no JSON": Bad(talk(called("{oops"), RESULT), "no JSON object", "messages"),
    "arguments that are a list": Bad(talk(called("[1]"), RESULT), "no JSON object", "messages"),
    "a template that loops for ever on tools": Bad(tools({}), "too long", "messages", "looping"),
    "a grammar that only recurs on the left": Bad({"grammar": 'root ::= root "a"'}, "grammar", "grammar"),
    "a grammar that is none": Bad({"grammar": "root ::= ("}, "grammar", "grammar"),
    "a grammar of 60,000 brackets": Bad(
        {"grammar": "root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000}, "grammar", "grammar"
    ),
    "a schema with a remote reference": Bad({"schema": REMOTE}, "$ref", "response_format"),
    "a schema with a keyword": Bad({"schema": {"uniqueItems": True}}, "`uniqueItems`", "response_format"),
    "a schema that is nothing but itself": Bad({"schema": {"$ref": "#"}}, "", "response_format"),
    "a schema that no value keeps": Bad({"schema": {"enum": []}}, "", "response_format"),
}


def body(path: str, model: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The request in the dialect of `path`."""
    made = {"model": model, "messages": [QUESTION], **fields}
    if schema := made.pop("schema", None):
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        made |= {"response_format": form} if path.startswith("/v1") else {"format": schema}
    return made | ({"max_tokens": 4} if path.startswith("/v1") else {"options": {"num_predict": 4}, "stream": False})


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_a_400_and_the_worker_lives(daemon: Daemon, case: str, path: str) -> None:
    bad = BAD[case]
    before, started = sorted(daemon.workers()), time.monotonic()
    told = daemon.post(path, body(path, named(daemon, bad.model), bad.fields))
    assert told.status == 400, told.body
    assert time.monotonic() - started < allowed(8)
    error = told.json["error"]
    if path.startswith("/v1"):
        assert (error["type"], error["param"]) == ("invalid_request_error", bad.param), error
    assert bad.words in (error["message"] if path.startswith("/v1") else error)
    assert sorted(daemon.workers()) == before


LARGE = {
    "1,000 properties": {"type": "object", "properties": {f"property {n}": {"type": "boolean"} for n in range(1000)}},
    "10,000 values": {"enum": [f"value number {n}" for n in range(10_000)]},
    "recursion": {"type": "object", "properties": {"child": {"$ref": "#"}}, "additionalProperties": False},
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", LARGE)
def test_a_large_schema_is_kept_in_a_bounded_time(daemon: Daemon, case: str, path: str) -> None:
    started = time.monotonic()
    assert daemon.post(path, body(path, named(daemon, "caller"), {"schema": LARGE[case]})).status == 200
    # As a tool it is a part of the prompt, where it is too long for this model.
    told = daemon.post(path, body(path, named(daemon, "caller"), tools(properties(LARGE[case]), strict=True)))
    assert told.status == 200 if case == "recursion" else "tokens" in str(told.json["error"])
    assert time.monotonic() - started < allowed(10)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("field", ["tools", "schema"])
def test_60_000_brackets_are_a_400(daemon: Daemon, path: str, field: str) -> None:
    hole = "the hole"
    fields = tools(hole) if field == "tools" else {"schema": {"const": hole}}
    text = json.dumps(body(path, named(daemon, "caller"), fields))
    deep = text.replace(json.dumps(hole), '{"a":' * 60_000 + "{}" + "}" * 60_000)
    before = sorted(daemon.workers())
    assert daemon.ask("POST", path, deep.encode()).status == 400
    assert sorted(daemon.workers()) == before
    fields = tools(nested(400), strict=True) if field == "tools" else {"schema": nested(400)}
    assert daemon.post(path, body(path, named(daemon, "caller"), fields)).status in (200, 400)
    assert sorted(daemon.workers()) == before


def test_recursion_on_the_left_that_ends_is_kept(daemon: Daemon) -> None:
    fields = body(PATHS[0], named(daemon, "caller"), {"grammar": 'root ::= root "a" | "b"'})
    text = daemon.post(PATHS[0], fields).json["choices"][0]["message"]["content"]
    assert text == "b" + "a" * (len(text) - 1)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tool_choice": "required"}, "tool_choice"),
        (tools({}) | {"tool_choice": "much"}, "tool_choice"),
        ({"reasoning_effort": "much"}, "reasoning_effort"),
    ],
)
def test_a_field_that_cannot_be_is_named(daemon: Daemon, fields: dict[str, Any], param: str) -> None:
    told = daemon.post(PATHS[0], body(PATHS[0], named(daemon, "caller"), fields))
    assert (told.status, told.json["error"]["param"]) == (400, param)
