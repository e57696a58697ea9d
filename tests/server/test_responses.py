"""OpenAI's `/v1/responses` with its own package, on the scripted engine: a model answers with the last message."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import openai
import pydantic
import pytest

from server.keys.file import change_keys
from server.keys.record import ApiKey, new_key
from tests.daemon import Daemon, put_model, wait_until

PATH = "/v1/responses"
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": [2]}}</tool_call>'
ADD = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
NOTE = {"type": "custom", "name": "note", "description": "Write a note."}


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("responses")
    put_model(home, "able", capabilities=("completion", "tools", "thinking"))
    with Daemon(home, script={"echo": True}) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def client(talker: Daemon) -> Iterator[openai.OpenAI]:
    with connected(talker) as client:
        yield client


def connected(daemon: Daemon, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{daemon.url}/v1", api_key=key, max_retries=0)


def ask(daemon: Daemon, text: Any = "one two", **more: Any) -> Any:
    answer = daemon.post(PATH, {"model": "able", "input": text, **more})
    assert answer.status == 200, answer.body
    return answer.json


def kinds(events: list[Any]) -> list[str]:
    """The types of events, each once where several of it follow each other."""
    names = [event.type.removeprefix("response.") for event in events]
    return [name for number, name in enumerate(names) if number == 0 or names[number - 1] != name]


def test_a_response(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="able", input="one two", instructions="Echo.", metadata={"a": "b"})
    assert answer.output_text == "one two"
    assert (answer.status, answer.instructions, answer.metadata, answer.error) == (
        "completed",
        "Echo.",
        {"a": "b"},
        None,
    )
    assert answer.usage
    assert (answer.usage.output_tokens, answer.usage.total_tokens) == (2, 4)
    assert answer.completed_at


def test_text_comes_by_the_published_events_in_their_order(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="able", input="one two three", stream=True))
    assert kinds(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "one two three"
    assert events[-1].response.output_text == "one two three"
    assert events[0].response.status == "in_progress" and events[0].response.output == []


def test_thinking_and_a_call_are_items_of_their_own(client: openai.OpenAI) -> None:
    text = f"<think>Let me see.</think>I add them.\n{CALL}"
    events = list(client.responses.create(model="able", input=text, tools=[ADD], stream=True))  # type: ignore[list-item]
    assert kinds(events) == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done",
        "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done",
        "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    thinking, message, call = events[-1].response.output
    assert thinking.content[0].text == "Let me see."
    assert message.content[0].text == "I add them."
    assert (call.name, json.loads(call.arguments)) == ("add", {"a": 1, "b": [2]})
    indices = [event.output_index for event in events if event.type == "response.output_item.added"]
    assert indices == [0, 1, 2]


def test_a_whole_turn_with_a_tool(client: openai.OpenAI) -> None:
    first = client.responses.create(model="able", input=CALL, tools=[ADD])  # type: ignore[list-item]
    (call,) = first.output
    assert call.type == "function_call"
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "three"}
    second = client.responses.create(model="able", input=[result], tools=[ADD], previous_response_id=first.id)  # type: ignore[list-item]
    assert second.output_text == "three"
    # The same without the store: the client sends everything back.
    turns: Any = [{"role": "user", "content": CALL}, *(item.model_dump() for item in first.output), result]
    assert client.responses.create(model="able", input=turns, tools=[ADD], store=False).output_text == "three"  # type: ignore[list-item]


def test_a_custom_tool_takes_a_text_and_a_namespace_stays_a_field(client: openai.OpenAI) -> None:
    text = '<tool_call>{"name": "note", "arguments": {"input": "buy milk"}}</tool_call>'
    events = list(client.responses.create(model="able", input=text, tools=[NOTE], stream=True))  # type: ignore[list-item]
    assert "custom_tool_call_input.done" in kinds(events)
    (call,) = events[-1].response.output
    assert (call.type, call.input) == ("custom_tool_call", "buy milk")
    space: Any = {"type": "namespace", "name": "maths", "description": "Sums.", "tools": [ADD]}
    named = client.responses.create(model="able", input=CALL.replace('"add"', '"maths.add"'), tools=[space])
    (other,) = named.output
    assert other.type == "function_call"
    assert (other.namespace, other.name) == ("maths", "add")


def test_a_model_of_pydantic_is_parsed(client: openai.OpenAI) -> None:
    class Sum(pydantic.BaseModel):
        total: int

    answer = client.responses.parse(model="able", input='{"total": 3}', text_format=Sum)
    assert answer.output_parsed == Sum(total=3)


def test_the_helper_for_streams_sees_the_whole_response(client: openai.OpenAI) -> None:
    with client.responses.stream(model="able", input="one two") as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == "one two"


def test_thinking_goes_back_hidden(client: openai.OpenAI) -> None:
    include: Any = ["reasoning.encrypted_content"]
    first = client.responses.create(
        model="able", input="<think>Seven.</think>Done.", include=include, store=False, reasoning={"summary": "auto"}
    )
    thinking = first.output[0]
    assert thinking.type == "reasoning"
    assert thinking.encrypted_content and "Seven" not in thinking.encrypted_content
    assert thinking.summary[0].text == "Seven."
    back: Any = [*(item.model_dump() for item in first.output), {"role": "user", "content": "and now"}]
    again = client.responses.create(model="able", input=back, store=False)
    assert again.output_text == "and now"
    foreign: Any = [{"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAAAB"}, back[-1]]
    named = client.responses.create(model="able", input=foreign, store=False)
    assert "encrypted_content" in named.warning  # type: ignore[attr-defined]


def test_probabilities_come_with_the_text(talker: Daemon) -> None:
    answer = ask(talker, include=["message.output_text.logprobs"], top_logprobs=2)
    assert answer["top_logprobs"] == 2
    assert isinstance(answer["output"][0]["content"][0]["logprobs"], list)


def test_an_answer_that_is_cut_is_incomplete(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="able", input="a b c d", max_output_tokens=2)
    assert answer.status == "incomplete"
    assert answer.incomplete_details and answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output[0].status == "incomplete"  # type: ignore[union-attr]


def test_stored_responses_are_got_listed_and_deleted(client: openai.OpenAI) -> None:
    first = client.responses.create(
        model="able", input=[{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
    )
    assert client.responses.retrieve(first.id).output_text == "two"
    newest, oldest = client.responses.input_items.list(first.id)
    assert (oldest.content[0].text, newest.content[0].text) == ("one", "two")  # type: ignore[union-attr]
    page = client.responses.input_items.list(first.id, order="asc", limit=1)
    assert page.data[0].id == oldest.id and page.has_more
    reference: Any = [{"type": "item_reference", "id": oldest.id}]
    assert client.responses.create(model="able", input=reference).output_text == "one"
    client.responses.delete(first.id)
    for call in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            call(first.id)
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(model="able", input="x", previous_response_id=first.id)
    assert caught.value.param == "previous_response_id"


def test_store_false_leaves_nothing(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="able", input="one", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)


def test_words_of_a_response_are_not_logged(talker: Daemon) -> None:
    ask(talker, "xylophone", instructions="zeppelin")
    assert "xylophone" not in talker.log and "zeppelin" not in talker.log


def test_tokens_of_the_input_are_counted(client: openai.OpenAI) -> None:
    counted = client.responses.input_tokens.count(model="able", input="one two three", instructions="Be brief.")
    assert (counted.object, counted.input_tokens) == ("response.input_tokens", 3)  # the scripted engine reads the last


def test_a_response_in_the_background_is_polled_or_followed(client: openai.OpenAI) -> None:
    begun = client.responses.create(model="able", input="one two", background=True)
    assert begun.status in ("queued", "in_progress", "completed")
    events = list(client.responses.retrieve(begun.id, stream=True))
    assert kinds(events)[:3] == ["created", "queued", "in_progress"]
    assert events[-1].type == "response.completed"
    later = list(client.responses.retrieve(begun.id, stream=True, starting_after=2))
    assert [event.sequence_number for event in later] == [event.sequence_number for event in events[3:]]
    assert client.responses.retrieve(begun.id).output_text == "one two"
    assert client.responses.cancel(begun.id).status == "completed"


def test_a_response_in_the_background_is_cancelled(tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("slow")
    put_model(home)
    script = {"tokens": ["a"] * 100_000, "delay": 0.01}
    with Daemon(home, script=script) as daemon, connected(daemon) as client:
        begun = client.responses.create(model="tiny", input="x", background=True)
        assert client.responses.cancel(begun.id).status == "cancelled"
        assert client.responses.retrieve(begun.id).status == "cancelled"
        other = client.responses.create(model="tiny", input="x", background=True)
        client.responses.delete(other.id)
        attached = client.responses.create(model="tiny", input="x", max_output_tokens=1)
        with pytest.raises(openai.BadRequestError):
            client.responses.cancel(attached.id)


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"tools": [{"type": "web_search"}]}, "the tool `web_search`"),
        ({"tools": [{"type": "mcp", "server_label": "x", "server_url": "http://x"}]}, "the tool `mcp`"),
        ({"tools": [ADD | {"defer_loading": True}]}, "`tools[].defer_loading`"),
        ({"text": {"verbosity": "high"}}, "`text.verbosity`"),
        ({"service_tier": "flex"}, "`service_tier`"),
        ({"include": ["nonsense"]}, "`include` of `nonsense`"),
        ({"prompt_cache_retention": "24h"}, "`prompt_cache_retention`"),
        ({"stream_options": {"include_obfuscation": True}}, "`stream_options.include_obfuscation`"),
        ({"made_up": 1}, "`made_up`"),
        ({"input": [{"type": "web_search_call", "id": "a"}, {"role": "user", "content": "x"}]}, "`web_search_call`"),
    ],
)
def test_what_is_not_honoured_is_named(talker: Daemon, extra: dict[str, Any], named: str) -> None:
    answer = talker.post(PATH, {"model": "able", "input": "x"} | extra)
    assert named in answer.json["warning"]
    assert named in answer.headers["X-LM-Warning"]


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input"),
        ({"input": [{"role": "critic", "content": "x"}]}, "input"),
        ({"input": [{"type": "dream"}]}, "input"),
        ({"input": [{"type": "function_call", "call_id": "a"}]}, "input"),
        ({"input": [{"type": "function_call_output", "output": "a"}]}, "input"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"tools": [ADD], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"tools": [ADD, ADD]}, "tools"),
        ({"tools": [{"type": "custom", "name": "a", "format": {"type": "grammar", "syntax": "lark"}}]}, "tools"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format"),
        ({"metadata": {"a": 5}}, "metadata"),
        ({"truncation": "middle"}, "truncation"),
        ({"background": True, "store": False}, "background"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"temperature": -1}, "temperature"),
    ],
)
def test_what_cannot_be_honoured_is_a_400(talker: Daemon, extra: dict[str, Any], param: str) -> None:
    answer = talker.post(PATH, {"model": "able", "input": "x"} | extra)
    assert answer.status == 400, answer.body
    assert answer.json["error"]["param"] == param


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"add", "note"}),
        ({"type": "function", "name": "add"}, {"add"}),
        ({"type": "custom", "name": "note"}, {"note"}),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "add"}]}, {"add"}),
    ],
)
def test_a_demanded_call_is_made(talker: Daemon, choice: Any, names: set[str]) -> None:
    text = json.dumps({"name": "note" if names == {"note"} else "add", "arguments": {"input": "x"}})
    answer = ask(talker, text, tools=[ADD, NOTE], tool_choice=choice)
    assert {item["name"] for item in answer["output"]} <= names
    assert answer["tool_choice"] == choice


def test_no_tool_and_tools_that_may_be_called(talker: Daemon) -> None:
    assert ask(talker, CALL, tools=[ADD], tool_choice="none")["output"][0]["type"] == "message"
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "custom", "name": "note"}]}
    assert ask(talker, "hello", tools=[ADD, NOTE], tool_choice=allowed)["output"][0]["type"] == "message"


def test_a_call_that_breaks_is_text(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="able", input='<tool_call>{"name": "add", "arguments": {"a"', tools=[ADD])  # type: ignore[list-item]
    assert [item.type for item in answer.output] == ["message"]
    assert '"add"' in answer.output_text


def test_an_error_in_mid_stream_is_raised(tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("dies")
    put_model(home)
    script = {"tokens": ["a"] * 50, "die_after": 3, "delay": 0.01}
    with Daemon(home, script=script) as daemon, connected(daemon) as client:
        seen: list[Any] = []
        with pytest.raises(openai.APIError) as caught:
            seen.extend(client.responses.create(model="tiny", input="x", stream=True))
        assert caught.value.code == "worker_died"
        assert seen[-1].type == "response.failed"
        assert seen[-1].response.error and seen[-1].response.error.code == "server_error"


def test_what_a_key_began_ends_with_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("ends")
    put_model(home)
    (one, first), (two, second) = new_key("infer"), new_key("infer")
    change_keys(home / "keys.json", lambda _: [first, second])
    script = {"tokens": ["a"] * 100_000, "delay": 0.01}

    def revoke(key: ApiKey) -> None:
        change_keys(
            home / "keys.json", lambda keys: [replace(each, revoked=1.0) if each == key else each for each in keys]
        )

    with Daemon(home, script=script) as daemon, connected(daemon, one) as mine, connected(daemon, two) as other:
        mine.responses.create(model="tiny", input="x", background=True)
        stream = other.responses.create(model="tiny", input="x", stream=True)
        assert next(iter(stream)).type == "response.created"
        assert active(daemon) == 2
        revoke(second)
        with pytest.raises(openai.APIError) as caught:
            for _ in stream:
                pass
        assert caught.value.code == "invalid_api_key"
        wait_until(lambda: active(daemon) == 1, 10)
        revoke(first)
        wait_until(lambda: active(daemon) == 0, 10)


def active(daemon: Daemon) -> int:
    """Answers that the model is on; the daemon's own token sees them, whatever keys there are."""
    token = json.loads((daemon.home / "daemon.json").read_bytes())["token"]
    return int(daemon.get("/api/ps", Authorization=f"Bearer {token}").json["models"][0]["active"])


def test_results_of_tools_come_in_parts_too(talker: Daemon) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"}
    parts = [{"type": "input_text", "text": "three "}, {"type": "input_text", "text": "four"}]
    result = {"type": "function_call_output", "call_id": "c", "output": parts}
    answer = ask(talker, [call, result], tools=[ADD])
    assert answer["output"][0]["content"][0]["text"] == "three four"
    image = result | {"output": [{"type": "input_image", "image_url": "data:"}]}
    assert talker.post(PATH, {"model": "able", "input": [call, image]}).status == 400


def test_a_response_belongs_to_the_key_that_made_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("keys")
    put_model(home)
    keys = {name: new_key(role) for name, role in (("one", "infer"), ("two", "admin"))}  # type: ignore[arg-type]
    change_keys(home / "keys.json", lambda _: [key for _, key in keys.values()])
    with Daemon(home, script={"echo": True}) as daemon:
        mine, others = ({"Authorization": f"Bearer {keys[name][0]}"} for name in ("one", "two"))
        made = daemon.ask("POST", PATH, {"model": "tiny", "input": "secret"}, mine).json
        path = f"{PATH}/{made['id']}"
        assert daemon.ask("GET", path, headers=mine).status == 200
        for method, place in (
            ("GET", path),
            ("DELETE", path),
            ("GET", f"{path}/input_items"),
            ("POST", f"{path}/cancel"),
        ):
            assert daemon.ask(method, place, headers=others).status == 404
        body = {"model": "tiny", "input": "x", "previous_response_id": made["id"]}
        assert daemon.ask("POST", PATH, body, others).status == 404
        reference = {"model": "tiny", "input": [{"type": "item_reference", "id": made["output"][0]["id"]}]}
        assert daemon.ask("POST", PATH, reference, others).status == 404
