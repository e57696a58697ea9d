"""Anthropic's dialect against the scripted engine, which answers with the last message."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.daemon import Answer, Daemon, put_model

CALL = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": [2]}}</tool_call>'
ANSWER = f"<think>Let me see.</think>I add them.\n{CALL}"
ADD = {"name": "add", "description": "Add", "input_schema": {"type": "object", "properties": {"a": {}}}}
BEGUN = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
HEADERS = {"anthropic-version": "2023-06-01"}


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("anthropic")
    put_model(home, "able", capabilities=("completion", "tools", "thinking"))
    put_model(home, "plain")
    with Daemon(home, script={"echo": True}) as daemon:
        yield daemon


def asked(content: Any = "one two", **more: Any) -> dict[str, Any]:
    return {"model": "able", "max_tokens": 100, "messages": [{"role": "user", "content": content}], **more}


def ask(talker: Daemon, content: Any = "one two", **more: Any) -> Answer:
    return talker.post("/v1/messages", asked(content, **more), **HEADERS)


def text_of(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    return "".join(block.get("text", "") for block in answer.json["content"])


def events_of(answer: Answer) -> list[dict[str, Any]]:
    """The events of a stream; the name of each must be the type of its object."""
    events = []
    for part in answer.body.decode().strip().split("\n\n"):
        name, data = part.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def types_of(value: Any) -> Any:
    """The keys and the types of a value, for a comparison of shapes."""
    if isinstance(value, dict):
        return {key: types_of(each) for key, each in value.items()}
    return [types_of(value[0])] if isinstance(value, list) and value else type(value).__name__


def test_a_whole_message_has_the_published_shape(talker: Daemon) -> None:
    answer = ask(talker)
    assert types_of(answer.json) == {
        "id": "str",
        "type": "str",
        "role": "str",
        "model": "str",
        "content": [{"type": "str", "text": "str"}],
        "stop_reason": "str",
        "stop_sequence": "NoneType",
        "stop_details": "NoneType",
        "usage": {
            "input_tokens": "int",
            "cache_creation_input_tokens": "int",
            "cache_read_input_tokens": "int",
            "cache_creation": {"ephemeral_5m_input_tokens": "int", "ephemeral_1h_input_tokens": "int"},
            "service_tier": "str",
            "output_tokens": "int",
            "output_tokens_details": {"thinking_tokens": "int"},
        },
    }
    assert answer.json["content"][0]["text"] == "one two"
    assert (answer.json["stop_reason"], answer.json["model"]) == ("end_turn", "able")
    assert answer.headers["request-id"] == answer.headers["X-Request-Id"]


def test_a_stream_has_all_events_in_the_published_order(talker: Daemon) -> None:
    events = events_of(ask(talker, ANSWER, stream=True, tools=[ADD], thinking={"type": "adaptive"}))
    order = [event["type"] for event in events]
    assert order[:2] == ["message_start", "ping"] and order[-2:] == ["message_delta", "message_stop"]
    blocks = [event for event in events if event["type"].startswith("content_block")]
    starts = [event["content_block"] for event in blocks if event["type"] == "content_block_start"]
    assert [block["type"] for block in starts] == ["thinking", "text", "tool_use"]
    for number in range(3):
        own = [event for event in blocks if event["index"] == number]
        assert [own[0]["type"], own[-1]["type"]] == ["content_block_start", "content_block_stop"]
        assert {event["type"] for event in own[1:-1]} == {"content_block_delta"}
    kinds = [event["delta"]["type"] for event in blocks if "delta" in event]
    assert list(dict.fromkeys(kinds)) == ["thinking_delta", "signature_delta", "text_delta", "input_json_delta"]
    assert starts[2]["input"] == {} and starts[2]["name"] == "add"
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    assert events[0]["message"]["content"] == [] and events[0]["message"]["stop_reason"] is None


def test_a_stream_and_a_whole_message_say_the_same(talker: Daemon) -> None:
    whole = ask(talker, ANSWER, tools=[ADD], thinking={"type": "enabled", "budget_tokens": 50}).json
    blocks: list[dict[str, Any]] = []
    inputs = ""
    more = {"stream": True, "tools": [ADD], "thinking": {"type": "enabled", "budget_tokens": 50}}
    for event in events_of(ask(talker, ANSWER, **more)):
        if event["type"] == "content_block_start":
            blocks.append(event["content_block"])
        if event["type"] == "content_block_delta":
            key = event["delta"]["type"].removesuffix("_delta")
            if key == "input_json":
                inputs += event["delta"]["partial_json"]
            else:
                blocks[-1][key] += event["delta"][key]
    blocks[2] |= {"input": json.loads(inputs), "id": whole["content"][2]["id"]}
    assert blocks == whole["content"]
    assert whole["content"][2]["input"] == {"a": 1, "b": [2]} and len(whole["content"][0]["signature"]) == 64


def test_without_thinking_there_is_a_switch_off_and_an_effort_is_named(talker: Daemon) -> None:
    told = ask(talker, output_config={"effort": "high"})
    assert "`output_config.effort` (without `thinking`)" in told.json["warning"]
    assert told.headers["X-LM-Warning"] == told.json["warning"]
    assert "warning" not in ask(talker, thinking={"type": "disabled"}).json
    told = ask(talker, model="plain", thinking={"type": "enabled", "budget_tokens": 1024})
    assert told.json["warning"] == "passed over: `thinking`, `thinking.budget_tokens`"


def test_a_thinking_that_is_not_shown_comes_back_by_its_signature(talker: Daemon) -> None:
    hidden = {"type": "adaptive", "display": "omitted"}
    block = ask(talker, "<think>Let me see.</think>Yes", thinking=hidden).json["content"][0]
    assert block["thinking"] == "" and block["signature"]
    back = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": [block, {"type": "redacted_thinking", "data": "xyz"}]},
        {"role": "user", "content": "two"},
    ]
    assert text_of(ask(talker, messages=back)) == "two"
    block["signature"] = block["signature"][:-3] + "!!"
    assert "damaged" in ask(talker, messages=back).json["error"]["message"]
    back[1]["content"] = [{"type": "thinking", "thinking": "Hm", "signature": "of-another-service"}]
    assert text_of(ask(talker, messages=back)) == "two"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("It is 3", "It is 3"),
        ([{"type": "text", "text": "It is"}, {"type": "text", "text": "3"}], "It is\n3"),
        ([], ""),
        ([{"type": "document", "source": {"type": "text", "data": "page"}, "title": "A"}], "A\npage"),
        (
            [{"type": "search_result", "source": "u", "title": "A", "content": [{"type": "text", "text": "b"}]}],
            "A\nu\nb",
        ),
    ],
    ids=["text", "blocks", "nothing", "document", "search"],
)
def test_results_of_tools_go_back_in_all_their_forms(talker: Daemon, content: Any, text: str) -> None:
    uses = [{"type": "tool_use", "id": f"t{n}", "name": "add", "input": {"a": n}} for n in range(2)]
    results = [{"type": "tool_result", "tool_use_id": f"t{n}", "content": content} for n in range(2)]
    results[1]["is_error"] = True
    talk = [
        {"role": "user", "content": "add"},
        {"role": "assistant", "content": [{"type": "text", "text": "I do"}, *uses]},
        {"role": "user", "content": results},
    ]
    assert text_of(ask(talker, messages=talk, tools=[ADD])) == f"Error: {text}"
    results[1]["is_error"] = False
    assert text_of(ask(talker, messages=talk, tools=[ADD])) == text
    talk[2]["content"] = [{"type": "text", "text": "and now?"}, *results]
    assert text_of(ask(talker, messages=talk, tools=[ADD])) == "and now?"  # after the results, as published


def test_choices_of_tools(talker: Daemon) -> None:
    forced = '{"name": "add", "arguments": {"a": 1}}'
    for choice in ({"type": "any"}, {"type": "tool", "name": "add", "disable_parallel_tool_use": True}):
        told = ask(talker, forced, tools=[ADD], tool_choice=choice).json
        assert (told["content"][0]["type"], told["stop_reason"]) == ("tool_use", "tool_use")
    assert text_of(ask(talker, CALL, tools=[ADD], tool_choice={"type": "none"})) == CALL
    for choice in ({"type": "tool", "name": "nope"}, {"type": "sometimes"}):
        refused = ask(talker, tools=[ADD], tool_choice=choice)
        assert refused.status == 400 and "`tool_choice` is" in refused.json["error"]["message"]
    assert ask(talker, tool_choice={"type": "any"}).status == 400


SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}


def test_tools_of_the_service_are_left_out_and_named(talker: Daemon) -> None:
    told = ask(talker, ANSWER, tools=[SEARCH, ADD], mcp_servers=[{"type": "url", "url": "http://x", "name": "x"}])
    assert "`mcp_servers`" in told.json["warning"] and "the tool `web_search`" in told.json["warning"]
    assert [block["type"] for block in told.json["content"]] == ["thinking", "text", "tool_use"]
    refused = ask(talker, tools=[SEARCH, ADD], tool_choice={"type": "tool", "name": "web_search"})
    assert refused.status == 400 and "nothing here runs this tool" in refused.json["error"]["message"]
    only = ask(talker, "hello", model="plain", tools=[SEARCH])
    assert text_of(only) == "hello" and "web_search" in only.json["warning"]


def test_a_call_that_breaks_comes_back_as_text(talker: Daemon) -> None:
    broken = '<tool_call>{"name": "add", "arguments": {"a": 1}, oh</tool_call>'
    told = ask(talker, broken, tools=[ADD]).json
    assert [block["type"] for block in told["content"]] == ["text"] and told["stop_reason"] == "end_turn"
    assert told["content"][0]["text"] == broken
    events = events_of(ask(talker, broken, tools=[ADD], stream=True))
    assert not any(event.get("content_block", {}).get("type") == "tool_use" for event in events)


def test_an_eager_tool_gets_its_input_as_it_is_written(talker: Daemon) -> None:
    def pieces(**more: Any) -> int:
        events = events_of(ask(talker, CALL, stream=True, **more))
        return sum(event.get("delta", {}).get("type") == "input_json_delta" for event in events)

    assert pieces(tools=[ADD | {"eager_input_streaming": True}]) > 1
    beta = {"anthropic-beta": "fine-grained-tool-streaming-2025-05-14", **HEADERS}
    answer = talker.post("/v1/messages", asked(CALL, tools=[ADD], stream=True), **beta)
    inputs = [
        e["delta"]["partial_json"] for e in events_of(answer) if e.get("delta", {}).get("type") == "input_json_delta"
    ]
    assert json.loads("".join(inputs)) == {"a": 1, "b": [2]}


@pytest.mark.parametrize(
    ("more", "reason", "sequence", "text"),
    [
        ({"max_tokens": 1}, "max_tokens", None, "one"),
        ({"max_tokens": 0}, "max_tokens", None, ""),
        ({"stop_sequences": [" two"]}, "stop_sequence", " two", "one"),
        ({"stop_sequences": ["nine"]}, "end_turn", None, "one two"),
    ],
    ids=["length", "nothing", "stopped", "whole"],
)
def test_why_an_answer_ends(talker: Daemon, more: Any, reason: str, sequence: Any, text: str) -> None:
    told = ask(talker, **more)
    assert (told.json["stop_reason"], told.json["stop_sequence"], text_of(told)) == (reason, sequence, text)


def test_the_cache_is_told(talker: Daemon) -> None:
    plain = ask(talker).json["usage"]
    assert (plain["input_tokens"], plain["cache_creation_input_tokens"], plain["cache_read_input_tokens"]) == (2, 0, 0)
    marked = [{"type": "text", "text": "one two", "cache_control": {"type": "ephemeral"}}]
    for more in ({"content": marked}, {"cache_control": {"type": "ephemeral"}}, {"system": marked}):
        kept = ask(talker, **more).json["usage"]
        assert (kept["input_tokens"], kept["cache_creation_input_tokens"]) == (0, 2)
        assert kept["cache_creation"]["ephemeral_5m_input_tokens"] == 2


def test_tokens_are_counted(talker: Daemon) -> None:
    def count(**more: Any) -> Any:
        body = {key: value for key, value in asked(**more).items() if key != "max_tokens"}
        return talker.post("/v1/messages/count_tokens", body, **HEADERS).json

    assert count() == {"input_tokens": 2}
    assert count(content="w " * 100_000)["input_tokens"] == 100_001  # longer than the context
    assert count(tools=[SEARCH])["input_tokens"] == 2


def test_models_in_the_form_of_whoever_asks(talker: Daemon) -> None:
    assert talker.get("/v1/models").json["object"] == "list"
    page = talker.get("/v1/models?limit=1", **HEADERS).json
    assert (len(page["data"]), page["has_more"], page["first_id"]) == (1, True, page["last_id"])
    rest = talker.get(f"/v1/models?after_id={page['last_id']}", **HEADERS).json
    assert (len(rest["data"]), rest["has_more"]) == (1, False)
    back = talker.get(f"/v1/models?before_id={rest['first_id']}", **HEADERS).json
    assert (back["data"], back["has_more"]) == (page["data"], False)
    one = talker.get("/v1/models/able", **HEADERS).json
    assert (one["type"], one["id"]) == ("model", "able") and one["capabilities"]["thinking"]["supported"]
    for path, status in (("?limit=0", 400), ("?after_id=nope", 404), ("/nope", 404)):
        refused = talker.get(f"/v1/models{path}", **HEADERS)
        assert (refused.status, refused.json["type"]) == (status, "error")
    assert "type" not in talker.get("/v1/models/nope").json


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"max_tokens": None}, "has no `max_tokens`"),
        ({"max_tokens": -1}, "`max_tokens` is not"),
        ({"messages": []}, "`messages` has 0 entries"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "no role `robot`"),
        ({"messages": [{"role": "assistant", "content": "y"}]}, "no message of the user"),
        ({"messages": BEGUN, "output_format": {"type": "json_schema", "schema": {}}}, "an answer that is begun"),
        ({"content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}, "`image` is not in this"),
        ({"content": [{"type": "document", "source": {"type": "url", "url": "x"}}]}, "`document` is not in this"),
        ({"content": [{"type": "smell"}]}, "no block of type `smell`"),
        ({"content": [{"type": "text"}]}, "has no `text`"),
        ({"content": [{"type": "tool_result"}]}, "has no `tool_use_id`"),
        ({"system": [{"type": "image"}]}, "`image` is not in this"),
        ({"tools": [{"name": "add"}]}, "has no `input_schema`"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "no usable name"),
        ({"tools": [ADD, ADD]}, "two tools are named `add`"),
        ({"thinking": {"type": "enabled"}}, "has no `budget_tokens`"),
        ({"thinking": {"type": "deep"}}, "no `thinking` of type `deep`"),
        ({"output_config": {"format": {"type": "xml"}}}, "no format of type `xml`"),
        ({"stop": ["x"]}, "use `stop_sequences`"),
        ({"temperature": "hot"}, "does not match"),
        ({"model": "plain", "tools": [ADD]}, "does not support tools"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_bad_bodies_are_refused_in_anthropics_form(talker: Daemon, body: Any, word: str) -> None:
    refused = talker.post("/v1/messages", asked(**body))
    assert refused.status == 400
    assert (refused.json["type"], refused.json["error"]["type"]) == ("error", "invalid_request_error")
    assert refused.json["request_id"] == refused.headers["request-id"]
    assert word in refused.json["error"]["message"]


def test_the_prompt_is_too_long_in_words_that_agents_know(talker: Daemon) -> None:
    refused = ask(talker, "w " * 100_000)
    assert refused.status == 400
    assert refused.json["error"]["message"].startswith("prompt is too long: 100001 tokens > ")


def test_fields_that_do_nothing_here_are_idle_or_named(talker: Daemon) -> None:
    quiet = {"metadata": {"user_id": "u"}, "service_tier": "auto", "betas": ["x"], "top_k": 5, "top_p": 0.9}
    assert "warning" not in ask(talker, temperature=0.5, inference_geo="eu", **quiet).json
    told = ask(talker, container="c", context_management={"edits": []}, wheather=1).json["warning"]
    assert all(name in told for name in ("`container`", "`context_management`", "`wheather`"))


def test_a_schema_is_kept_to(talker: Daemon) -> None:
    form = {"type": "json_schema", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}
    assert text_of(ask(talker, '{"a": 1}', output_config={"format": form})) == '{"a": 1}'
    assert text_of(ask(talker, '{"a": 1}', output_format=form)) == '{"a": 1}'
    assert ask(talker, tools=[ADD], tool_choice={"type": "any"}, output_format=form).status == 400


def test_an_error_in_mid_stream_is_an_event(tmp_path: Any) -> None:
    put_model(tmp_path)
    with Daemon(tmp_path, script={"tokens": ["a", "b", "c"], "die_after": 2, "delay": 0.05}) as daemon:
        answer = daemon.post("/v1/messages", asked(model="tiny", stream=True))
        events = events_of(answer)
    assert (events[0]["type"], events[-1]["type"]) == ("message_start", "error")
    assert events[-1]["error"]["type"] == "api_error" and events[-1]["request_id"] == answer.headers["request-id"]


def test_what_others_know_as_busy_is_overloaded(tmp_path: Any) -> None:
    put_model(tmp_path)
    fail = {"code": "queue_full", "message": "64 requests wait", "hint": "later"}
    with Daemon(tmp_path, script={"fail": fail}) as daemon:
        answer = daemon.post("/v1/messages", asked(model="tiny"))
        assert daemon.post("/v1/chat/completions", asked(model="tiny")).status == 429
    assert (answer.status, answer.json["error"]["type"]) == (529, "overloaded_error")
    assert int(answer.headers["Retry-After"]) > 0


def test_names_that_programs_ask_for_mean_a_model_that_is_here(tmp_path: Any) -> None:
    put_model(tmp_path)
    aliases = "claude-haiku-*=nope,claude-*=tiny,tiny=nope"
    with Daemon(tmp_path, script={"echo": True}, env={"LM_MODEL_ALIASES": aliases}) as daemon:
        told = daemon.post("/v1/messages", asked(model="claude-opus-next"))
        assert (text_of(told), told.json["model"]) == ("one two", "claude-opus-next")
        assert text_of(daemon.post("/v1/messages", asked(model="tiny"))) == "one two"  # its own name goes first
        assert daemon.post("/api/show", {"model": "claude-x"}).json["digest"] == daemon.listed()[0]["digest"]
        missing = daemon.post("/v1/messages", asked(model="claude-haiku-9"))
        assert missing.status == 404 and "means `nope` by LM_MODEL_ALIASES" in missing.json["error"]["message"]
        hint = daemon.post("/api/show", {"model": "gpt-9"}).json["hint"]
        assert hint.startswith("LM_MODEL_ALIASES=gpt-*=NAME")


def test_a_body_without_a_model_means_the_only_one(tmp_path: Any) -> None:
    put_model(tmp_path)
    with Daemon(tmp_path, script={"echo": True}) as daemon:
        told = daemon.post("/v1/messages", asked(model=None))
        assert (text_of(told), told.json["model"]) == ("one two", "tiny:F32")


def test_an_answer_that_is_begun_goes_on(talker: Daemon) -> None:
    assert text_of(ask(talker, messages=[*BEGUN[:1], {"role": "assistant", "content": "It is ("}])) == "x"
