"""The package `anthropic` against the scripted engine, and what coding agents send, from the published formats."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.daemon import Daemon, put_model
from tests.server.test_anthropic import ADD, ANSWER, CALL, HEADERS, events_of

anthropic: Any = pytest.importorskip("anthropic")
TURNS = 12


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("clients")
    put_model(home, "able", capabilities=("completion", "tools", "thinking"))
    with Daemon(home, script={"echo": True}) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def client(talker: Daemon) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=talker.url, api_key="none", max_retries=0) as client:
        yield client


def asked(content: Any = "one two", **more: Any) -> dict[str, Any]:
    return {"model": "able", "max_tokens": 100, "messages": [{"role": "user", "content": content}], **more}


def test_a_message(client: Any) -> None:
    message = client.messages.create(**asked(), system="Be short")
    assert message.content[0].text == "one two" and message.stop_reason == "end_turn"
    assert message.usage.input_tokens == 2 and message._request_id


def test_a_stream_of_thinking_text_and_a_call(client: Any) -> None:
    kinds, text = [], ""
    thinking = {"type": "enabled", "budget_tokens": 1024}
    with client.messages.stream(**asked(ANSWER, tools=[ADD], thinking=thinking)) as stream:
        for event in stream:
            kinds.append(event.type)
            text += event.text if event.type == "text" else ""
        final = stream.get_final_message()
    assert {"thinking", "signature", "text", "input_json", "message_stop"} <= set(kinds)
    assert [block.type for block in final.content] == ["thinking", "text", "tool_use"]
    assert (text, final.content[0].thinking, final.content[2].input) == (
        "I add them.",
        "Let me see.",
        {"a": 1, "b": [2]},
    )
    assert final.stop_reason == "tool_use" and final.usage.output_tokens > 2
    back = [*asked(ANSWER)["messages"], final.to_param()]
    result = {"type": "tool_result", "tool_use_id": final.content[2].id, "content": "3"}
    turn = {"role": "user", "content": [result]}
    assert client.messages.create(**asked() | {"messages": [*back, turn], "tools": [ADD]}).content[0].text == "3"


def test_events_and_messages_are_of_the_packages_types(talker: Daemon) -> None:
    pydantic = pytest.importorskip("pydantic")
    event = pydantic.TypeAdapter(anthropic.types.RawMessageStreamEvent)
    body = asked(ANSWER, tools=[ADD], thinking={"type": "adaptive"}, cache_control={"type": "ephemeral"})
    for each in events_of(talker.post("/v1/messages", body | {"stream": True}, **HEADERS)):
        if each["type"] != "ping":
            assert not unknown(event.validate_python(each)), each
    message = anthropic.types.Message.model_validate(talker.post("/v1/messages", body, **HEADERS).json)
    assert not unknown(message)
    for row in talker.get("/v1/models", **HEADERS).json["data"]:
        assert not unknown(anthropic.types.ModelInfo.model_validate(row))


def unknown(value: Any) -> list[str]:
    """Keys that the package's type of an object does not have, in it and within."""
    if isinstance(value, list):
        return [name for each in value for name in unknown(each)]
    if not hasattr(value, "model_fields_set"):
        return []
    inner = [name for field in type(value).model_fields for name in unknown(getattr(value, field))]
    return [*(value.model_extra or {}), *inner]


def test_the_tool_runner_of_the_package_runs_a_whole_turn(client: Any) -> None:
    @anthropic.beta_tool
    def add(a: int, b: list[int]) -> str:
        """Add them."""
        return str(a + sum(b))

    final = client.beta.messages.tool_runner(**asked(CALL), tools=[add]).until_done()
    assert final.content[0].text == "3"


def test_counts_models_and_structured_output(client: Any) -> None:
    counted = client.messages.count_tokens(model="able", messages=asked()["messages"])
    assert counted.input_tokens == 2
    listed = list(client.models.list(limit=1))
    assert [(model.id, model.type) for model in listed] == [("able:F32", "model")]
    assert client.models.retrieve("able").capabilities.thinking.supported is True
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    form = {"format": {"type": "json_schema", "schema": schema}}
    assert json.loads(client.messages.create(**asked('{"a": 1}'), output_config=form).content[0].text) == {"a": 1}


def test_errors_are_its_own(client: Any) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(**asked() | {"model": "claude-opus-next"})
    assert missing.value.type == "not_found_error" and missing.value.request_id
    assert "LM_MODEL_ALIASES=claude-*=NAME" in str(missing.value)
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.messages.create(**asked([{"type": "image", "source": {"type": "url", "url": "http://x"}}]))
    assert "image" in refused.value.api_message


def tools() -> list[dict[str, Any]]:
    """Thirty tools with schemas as those of agents; the last one marks the end of what is to be kept in the cache."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "command": {"type": "string", "description": "The command"},
            "timeout": {"type": "number", "description": "Milliseconds"},
            "edits": {"type": "array", "items": {"type": "object", "properties": {"old": {"type": "string"}}}},
        },
        "required": ["command"],
        "additionalProperties": False,
    }
    made: list[dict[str, Any]] = [
        {"name": f"Tool{n}", "description": f"Does {n}. " * 40, "input_schema": schema} for n in range(30)
    ]
    made[-1]["cache_control"] = {"type": "ephemeral", "ttl": "1h"}
    return made


def test_what_a_coding_agent_sends_over_a_session(talker: Daemon) -> None:
    """System blocks with marks, thirty tools, thinking, streams, calls in parallel, their results in one message."""
    kept = {"type": "ephemeral"}
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.101.e51; cc_entrypoint=cli; cch=a5145;"},
        {"type": "text", "text": "You are an agent for the terminal.", "cache_control": kept},
        {"type": "text", "text": "Rules.\n" * 200, "cache_control": kept},
    ]
    both = '<tool_call>{"name": "Tool1", "arguments": {"command": "ls"}}</tool_call>'
    both += '<tool_call>{"name": "Tool2", "arguments": {"command": "pwd"}}</tool_call>'
    talk: list[dict[str, Any]] = []
    ids: list[str] = []
    for turn in range(TURNS):
        said = f"<think>Turn {turn}.</think>I look. {both}"
        content: list[dict[str, Any]] = [
            {"type": "tool_result", "tool_use_id": each, "content": "out", "is_error": turn == 3} for each in ids
        ]
        content.append({"type": "text", "text": said})
        if turn == 5:
            content.append(
                {"type": "text", "text": "<system-reminder>\nNo.\n</system-reminder>", "cache_control": kept}
            )
        talk.append({"role": "user", "content": content})
        body = {
            "model": "able",
            "max_tokens": 32_000,
            "system": system,
            "tools": tools(),
            "messages": talk,
            "metadata": {"user_id": "user_1"},
            "thinking": {"type": "adaptive"},
            "output_config": {"effort": "medium"},
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "stream": True,
        }
        beta = {"anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14", **HEADERS}
        answer = talker.post("/v1/messages?beta=true", body, Authorization="Bearer lm", **beta)
        events = events_of(answer)
        assert events[-2]["delta"]["stop_reason"] == "tool_use", events[-2]
        blocks = rebuilt(events)
        assert [block["type"] for block in blocks][:4] == ["thinking", "text", "tool_use", "tool_use"]
        ids = [block["id"] for block in blocks if block["type"] == "tool_use"]
        assert len(set(ids)) == 2
        talk.append({"role": "assistant", "content": blocks})
        assert answer.headers["X-LM-Warning"].startswith("passed over: `context_management`")


def rebuilt(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The blocks of a message, put together as clients do it."""
    blocks: list[dict[str, Any]] = []
    for event in events:
        if event["type"] == "content_block_start":
            blocks.append(dict(event["content_block"]))
            inputs = ""
        elif event["type"] == "content_block_delta":
            kind = event["delta"]["type"].removesuffix("_delta")
            if kind == "input_json":
                inputs += event["delta"]["partial_json"]
            else:
                blocks[-1][kind] += event["delta"][kind]
        elif event["type"] == "content_block_stop" and blocks[-1]["type"] == "tool_use":
            blocks[-1]["input"] = json.loads(inputs)
    return blocks
