"""Tools and thinking over HTTP, with the scripted engine: a model answers with the last message of the user."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import ollama
import openai
import pytest

from server.api.request import require
from server.errors import Unsupported
from tests.daemon import Daemon, put_model

CALL = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": [2]}}</tool_call>'
ANSWER = f"<think>Let me see.</think>I add them.\n{CALL}"
ADD = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("talker")
    put_model(home, "able", capabilities=("completion", "tools", "thinking"))
    put_model(home, "plain")
    with Daemon(home, script={"echo": True}) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def client(talker: Daemon) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{talker.url}/v1", api_key="none") as client:
        yield client


def ask(text: str = ANSWER, **more: Any) -> dict[str, Any]:
    return {"model": "able", "messages": [{"role": "user", "content": text}], "tools": [ADD], **more}


def test_openais_client_gets_a_call(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ask())
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I add them."
    assert choice.message.reasoning_content == "Let me see."  # type: ignore[attr-defined]
    assert choice.message.tool_calls
    call = choice.message.tool_calls[0]
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == (
        "function",
        "add",
        {"a": 1, "b": [2]},
    )
    assert answer.usage
    assert answer.usage.completion_tokens_details
    assert answer.usage.completion_tokens_details.reasoning_tokens


def test_openais_client_streams_a_call(client: openai.OpenAI) -> None:
    thinking = text = arguments = ""
    names, ids, reasons = [], [], []
    for chunk in client.chat.completions.create(**ask(stream=True)):
        choice = chunk.choices[0]
        text += choice.delta.content or ""
        thinking += getattr(choice.delta, "reasoning", None) or ""
        reasons.append(choice.finish_reason)
        for call in choice.delta.tool_calls or []:
            assert call.function
            names += [call.function.name] if call.function.name else []
            ids += [call.id] if call.id else []
            arguments += call.function.arguments or ""
    assert (text, thinking, names, len(ids)) == ("I add them.", "Let me see.", ["add"], 1)
    assert json.loads(arguments) == {"a": 1, "b": [2]}
    assert reasons[-1] == "tool_calls"


@pytest.mark.parametrize("stream", [True, False])
def test_ollamas_client_gets_a_call(talker: Daemon, stream: bool) -> None:
    with ollama.Client(host=talker.url) as client:
        parts = client.chat(**ask(stream=stream))
        parts = list(parts) if stream else parts
    messages = [part.message for part in parts] if stream else [parts.message]
    calls = [call for message in messages for call in message.tool_calls or []]
    assert "".join(message.content or "" for message in messages) == "I add them."
    assert "".join(message.thinking or "" for message in messages) == "Let me see."
    assert [(call.function.name, call.function.arguments) for call in calls] == [("add", {"a": 1, "b": [2]})]


def test_ollamas_client_calls_a_function_of_python(talker: Daemon) -> None:
    def add(a: int, b: list[int]) -> int:
        """Add them."""
        return a + sum(b)

    request = ask() | {"tools": [add]}
    with ollama.Client(host=talker.url) as client:
        calls = client.chat(**request).message.tool_calls
    assert calls
    assert add(**calls[0].function.arguments) == 3


def test_results_of_calls_go_back(talker: Daemon) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    talk = [
        {"role": "user", "content": "add"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
    ]
    assert talker.post("/v1/chat/completions", ask(messages=talk)).json["choices"][0]["message"]["content"] == "3"
    call["function"] = {"name": "add", "arguments": {"a": 1}}
    talk[1]["content"], talk[2] = "", {"role": "tool", "tool_name": "add", "content": "3"}
    assert talker.post("/api/chat", ask(messages=talk, stream=False)).json["message"]["content"] == "3"


def test_a_call_that_breaks_comes_back_as_text(talker: Daemon) -> None:
    text = '<tool_call>{"name": "add", "arguments": {"a": 1}, oh</tool_call>'
    answer = talker.post("/api/chat", ask(text, stream=False)).json["message"]
    assert (answer["content"], "tool_calls" in answer) == (text, False)
    choice = talker.post("/v1/chat/completions", ask(text)).json["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")
    assert "tool_calls" not in choice["message"]


def test_without_tools_a_call_is_text(talker: Daemon) -> None:
    for request in (ask(CALL) | {"tools": []}, ask(CALL, tool_choice="none")):
        choice = talker.post("/v1/chat/completions", request).json["choices"][0]
        assert choice["message"]["content"] == CALL


@pytest.mark.parametrize(
    ("tools", "word"),
    [
        (["add"], "is no function"),
        ([{"type": "function"}], "is no function"),
        ([{"type": "function", "function": {"name": "a" * 10_000}}], "no usable name"),
        ([{"type": "function", "function": {"name": "a b"}}], "no usable name"),
        ([{"type": "function", "function": {"name": "a", "parameters": "text"}}], "no JSON schema of an object"),
        ([{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}], "no JSON schema"),
        ([ADD, ADD], "two tools are named `add`"),
    ],
)
def test_tools_that_are_none_are_refused(talker: Daemon, tools: list[Any], word: str) -> None:
    for path in ("/api/chat", "/v1/chat/completions"):
        answer = talker.post(path, ask(tools=tools))
        assert answer.status == 400
        assert word in str(answer.json["error"])


DEMANDED = '{"name": "add", "arguments": {"a": 1}}'


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
@pytest.mark.parametrize("model", ["able", "plain"])
def test_a_demanded_call_is_json_of_any_model(talker: Daemon, model: str, choice: Any) -> None:
    answer = talker.post("/v1/chat/completions", ask(DEMANDED, model=model, tool_choice=choice)).json
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("add", {"a": 1})


NOTE = {"type": "custom", "custom": {"name": "note", "description": "Write a note."}}
NOTED = '<tool_call>{"name": "note", "arguments": {"input": "buy milk"}}</tool_call>'


@pytest.mark.parametrize("stream", [False, True])
def test_a_custom_tool_of_openais_takes_a_text(client: openai.OpenAI, stream: bool) -> None:
    asked: Any = ask(NOTED, tools=[NOTE, ADD], stream=stream)
    answer: Any = client.chat.completions.create(**asked)
    if stream:
        calls = [call for chunk in answer for call in chunk.choices[0].delta.tool_calls or []]
        assert [call.type for call in calls] == ["custom", None]
        assert "".join(call.custom["input"] for call in calls) == "buy milk"
        return
    (call,) = answer.choices[0].message.tool_calls
    assert (call.type, call.custom.name, call.custom.input) == ("custom", "note", "buy milk")
    turns: Any = [*asked["messages"], answer.choices[0].message.model_dump(exclude_none=True)]
    turns.append({"role": "tool", "tool_call_id": call.id, "content": "noted"})
    again = client.chat.completions.create(model="able", messages=turns, tools=[NOTE])  # type: ignore[list-item]
    assert again.choices[0].message.content == "noted"


def test_tools_that_openais_choice_allows(talker: Daemon) -> None:
    def chosen(mode: str, name: str, text: str) -> Any:
        tools = [{"type": "function", "function": {"name": name}}]
        choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}
        return talker.post("/v1/chat/completions", ask(text, tools=[ADD, NOTE], tool_choice=choice))

    assert chosen("auto", "add", "hello").json["choices"][0]["message"]["content"] == "hello"
    (call,) = chosen("required", "add", DEMANDED).json["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "add"
    assert chosen("auto", "sub", "x").status == 400


@pytest.mark.parametrize("choice", ["much", {"type": "function", "function": {"name": "sub"}}, 3, {"type": "custom"}])
def test_a_choice_of_no_tool_is_refused(talker: Daemon, choice: Any) -> None:
    answer = talker.post("/v1/chat/completions", ask(tool_choice=choice))
    assert (answer.status, answer.json["error"]["param"]) == (400, "tool_choice")


@pytest.mark.slow
def test_a_demanded_call_of_the_real_engine_keeps_the_schema(tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"unit": {"enum": ["km", "miles"]}, "place": {"$ref": "#/$defs/place"}},
        "required": ["unit", "place"],
        "$defs": {"place": {"type": "string", "maxLength": 20}},
    }
    tools = [{"type": "function", "function": {"name": "distance", "parameters": schema}}]
    tools.append({"type": "function", "function": {"name": "give_up"}})
    with Daemon(tmp_path, runtime="llama") as daemon:
        daemon.pull("demo")
        for choice in ("required", {"type": "function", "function": {"name": "distance"}}):
            request = ask("How far?", tools=tools, tool_choice=choice, seed=1) | {"model": "demo"}
            choices = daemon.post("/v1/chat/completions", request).json["choices"]
            assert choices[0]["finish_reason"] == "tool_calls"
            (call,) = choices[0]["message"]["tool_calls"]
            arguments = json.loads(call["function"]["arguments"])
            if call["function"]["name"] == "distance":
                jsonschema.validate(arguments, schema)
        refused = daemon.post("/v1/chat/completions", ask(tools=tools) | {"model": "demo"})
        assert (refused.status, "does not support tools" in refused.json["error"]["message"]) == (400, True)


def test_a_model_without_tools_says_so(talker: Daemon) -> None:
    answer = talker.post("/api/chat", ask(model="plain"))
    assert (answer.status, "does not support tools" in answer.json["error"]) == (400, True)
    assert talker.post("/v1/chat/completions", ask(model="plain")).status == 400
    assert talker.post("/api/show", {"model": "able"}).json["capabilities"] == ["completion", "tools", "thinking"]


def test_a_choice_of_no_tool_is_told_as_it_was_sent(talker: Daemon) -> None:
    for choice, shown in (("each", '`"each"`'), ({"type": "function", "name": "sub"}, '{"type": "function", "name"')):
        told = talker.post("/v1/chat/completions", ask(tool_choice=choice)).json["error"]["message"]
        assert shown in told


@pytest.mark.parametrize(("capability", "field"), [("thinking", "think"), ("tools", "tools"), ("insert", "suffix")])
def test_a_refusal_of_what_a_model_cannot_do_names_the_field(capability: str, field: str) -> None:
    plain: Any = SimpleNamespace(name="plain", config={"capabilities": ["completion"]})
    with pytest.raises(Unsupported, match=f"`plain` does not support {capability}") as refused:
        require(plain, capability)
    assert refused.value.field == field


def test_thinking_is_wished_in_any_spelling(talker: Daemon) -> None:
    for wish in ({"reasoning_effort": "high"}, {"think": False}, {"reasoning": {"effort": "none"}}, {"think": "low"}):
        answer = talker.post("/v1/chat/completions", ask(**wish))
        assert (answer.status, "warning" in answer.json) == (200, False), wish
    assert talker.post("/v1/chat/completions", ask(reasoning_effort="much")).status == 400
    assert "warning" in talker.post("/v1/chat/completions", ask(model="plain", tools=None, think=True)).json
    for wish in ({"reasoning_effort": "none"}, {"think": False}, {"thinking_budget": 0}):
        answer = talker.post("/v1/chat/completions", ask(model="plain", tools=None, **wish))
        assert (answer.status, "warning" in answer.json) == (200, False), wish
    unable = talker.post("/api/chat", ask(model="plain", tools=None, think=True))
    assert (unable.status, unable.json["code"]) == (400, "unsupported")
    assert "does not support thinking" in unable.json["error"] and unable.json["hint"] == "it offers completion"
    assert talker.post("/api/chat", ask(think="much")).status == 400
    taken = talker.post("/v1/chat/completions", ask(chat_template_kwargs={"messages": []}))
    assert (taken.status, taken.json["error"]["param"]) == (400, "chat_template_kwargs")
