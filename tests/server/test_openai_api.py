"""Shapes of OpenAI's dialect, over HTTP, with the scripted engine."""

from __future__ import annotations

import math
from typing import Any

import openai
import pytest

from server.api.openai.bodies import CHAT_BODY, TEXT_BODY
from tests.daemon import Daemon

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def say(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], **more}


def test_models_are_listed_and_found(echo: Daemon) -> None:
    listed = echo.get("/v1/models").json
    assert [entry["id"] for entry in listed["data"]] == ["tiny:F32"]
    assert echo.get("/v1/models/tiny").json["id"] == "tiny"
    asked = echo.post(CHAT, say("x") | {"model": "none"}).json["error"]
    assert (asked["code"], asked["param"]) == ("model_not_found", "model")
    missing = echo.get("/v1/models/org/none")
    assert (missing.status, missing.json["error"]["type"]) == (404, "invalid_request_error")


def test_a_chat_completion(echo: Daemon) -> None:
    answer = echo.post(CHAT, say("one two")).json
    assert answer["object"] == "chat.completion"
    (choice,) = answer["choices"]
    assert choice["message"]["content"] == "one two"
    assert choice["finish_reason"] == "stop"
    told = answer["usage"]
    assert (told["prompt_tokens"], told["completion_tokens"], told["total_tokens"]) == (2, 2, 4)


def test_a_stream_begins_with_the_role_and_ends_with_usage_and_done(echo: Daemon) -> None:
    answer = echo.post(CHAT, say("one two", stream=True, stream_options={"include_usage": True}))
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert answer.body.endswith(b"data: [DONE]\n\n")
    first, *middle, finish, usage = answer.events
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(event["choices"][0]["delta"]["content"] for event in middle) == "one two"
    assert (finish["choices"][0]["finish_reason"], usage["choices"]) == ("stop", [])
    assert usage["usage"]["total_tokens"] == 4
    assert len({event["id"] for event in answer.events}) == 1


def test_several_answers_keep_their_indices(echo: Daemon) -> None:
    whole = echo.post(CHAT, say("a b", n=3)).json
    assert [(choice["index"], choice["message"]["content"]) for choice in whole["choices"]] == [
        (0, "a b"), (1, "a b"), (2, "a b"),
    ]  # fmt: skip
    texts = echo.post(TEXT, {"model": "tiny", "prompt": ["a b", "c"], "n": 2}).json["choices"]
    assert [choice["text"] for choice in texts] == ["a b", "a b", "c", "c"]
    assert [choice["index"] for choice in texts] == [0, 1, 2, 3]


@pytest.mark.parametrize("prompt", ["a b", ["a b"], [1, 2], [[1, 2]], [[1], [2]]])
def test_a_prompt_has_four_forms(echo: Daemon, prompt: Any) -> None:
    answer = echo.post(TEXT, {"model": "tiny", "prompt": prompt})
    assert answer.status == 200
    assert answer.json["usage"]["prompt_tokens"] == 2


def test_a_completion_streams(echo: Daemon) -> None:
    events = echo.post(TEXT, {"model": "tiny", "prompt": "a b c", "stream": True, "max_tokens": 2}).events
    pieces = [event["choices"][0] for event in events]
    assert "".join(piece["text"] for piece in pieces) == "a b"
    assert pieces[-1]["finish_reason"] == "length"


def test_content_may_come_in_parts(echo: Daemon) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    answer = echo.post(CHAT, {"model": "tiny", "messages": [{"role": "user", "content": parts}]}).json
    assert answer["choices"][0]["message"]["content"] == "one two"


@pytest.mark.parametrize(
    "extra",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": 5}}},
        {"response_format": {"type": "json_object"}, "grammar": 'root ::= "a"'},
        {"grammar": {"type": "peg", "value": "a"}},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
        {"messages": []},
        {"n": 0},
        {"n": 129},
        {"n": 1.5},
        {"temperature": -1},
        {"top_p": 2},
        {"stop": ["x"] * 17},
        {"max_tokens": -2},
        {"max_tokens": 5.5},
        {"messages": [{"role": "critic", "content": "x"}]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": []}]},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"tool_choice": "auto"},
        {"top_logprobs": 3},
        {"json_schema": {"type": "object"}},
        {"guided_choice": ["a", "b"]},
        {"min_tokens": 5},
        {"stop_token_ids": [5]},
        {"num_predict": 5},
        {"logit_bias": {"many": 1}},
        {"logprobs": True, "top_logprobs": 21},
        {"modalities": ["audio"]},
        {"messages": None},
    ],
)
def test_what_cannot_be_honoured_is_a_400(echo: Daemon, extra: dict[str, Any]) -> None:
    answer = echo.post(CHAT, say("x") | extra)
    assert answer.status == 400
    told = answer.json["error"]
    assert told["type"] == "invalid_request_error"
    assert told["message"]
    assert told["code"]


def test_what_asks_for_nothing_is_fine(echo: Daemon) -> None:
    body = say("x", tools=[], response_format={"type": "text"}, user="me", store=False, stop=None, logit_bias=None)
    assert echo.post(CHAT, body).status == 200
    assert echo.post(CHAT, body, Authorization="Bearer anything").status == 200


def test_a_long_prompt_is_refused_with_both_numbers(echo: Daemon) -> None:
    answer = echo.post(CHAT, say("word " * 5000))
    assert (answer.status, answer.json["error"]["code"]) == (400, "context_length_exceeded")
    assert answer.json["error"]["param"] == "messages"
    message = answer.json["error"]["message"]
    assert "This model's maximum context length is 2048 tokens." in message  # as LiteLLM looks for it
    assert "resulted in 5001 tokens" in message
    text = echo.post(TEXT, {"model": "tiny", "prompt": "word " * 5000}).json["error"]
    assert (text["code"], text["param"]) == ("context_length_exceeded", "prompt")


def test_openais_client_tells_an_overlong_prompt_from_other_errors(echo: Daemon) -> None:
    """LiteLLM looks for OpenAI's words in the error's text, LangChain for the code or for the last four of these."""
    client = openai.OpenAI(base_url=f"{echo.url}/v1", api_key="none", max_retries=0)
    with client, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "word " * 5000}])
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    assert "prompt is too long" in str(caught.value)
    assert "this model's maximum context length is" in str(caught.value).lower()


def test_routes_that_are_not_there_are_told_in_the_same_dialect(echo: Daemon) -> None:
    assert echo.get("/v1/nope").json["error"]["type"] == "invalid_request_error"
    assert echo.get(CHAT).status == 405


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"reasoning_effort": "low"}, "`reasoning_effort`"),
        ({"repetition_penalty": 1.3}, "`repetition_penalty`"),
        ({"num_ctx": 4096}, "`num_ctx`"),
        ({"user": "me"}, "`user`"),
        ({"metadata": {"a": "b"}}, "`metadata`"),
        ({"store": True}, "`store`"),
        ({"service_tier": "priority"}, "`service_tier`"),
        ({"safety_identifier": "me"}, "`safety_identifier`"),
        ({"prompt_cache_retention": "24h"}, "`prompt_cache_retention`"),
        ({"tools": [{"type": "web_search"}]}, "the tool `web_search`"),
        ({"keep_alive": "5m"}, "`keep_alive`"),
        ({"prompt_logprobs": 1}, "`prompt_logprobs`"),
        ({"continue_final_message": True}, "`continue_final_message`"),
        ({"temprature": 0}, "`temprature` (did you mean `temperature`?)"),
        ({"käse\r\nX: 1": True}, "(unknown)"),
        ({"messages": [{"role": "user", "content": "x", "name": "Bo"}]}, "`messages[].name`"),
        ({"messages": [{"role": "user", "content": "x", "weight": 1}]}, "`messages[].weight`"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"a": 1}}]}]},
            "`messages[].content[].cache_control`",
        ),
    ],
)
def test_what_is_not_honoured_is_named(echo: Daemon, extra: dict[str, Any], named: str) -> None:
    whole = echo.post(CHAT, say("x") | extra)
    assert whole.status == 200
    assert named in whole.json["warning"]
    if whole.json["warning"].isascii():
        assert whole.headers["X-LM-Warning"] == whole.json["warning"]
    streamed = echo.post(CHAT, say("x", stream=True) | extra)
    assert [event["warning"] for event in streamed.events if "warning" in event] == [whole.json["warning"]]
    assert streamed.headers["X-LM-Warning"]


def test_a_schema_as_clients_send_it_has_no_warning(echo: Daemon) -> None:
    schema = {"name": "City", "description": "a city", "strict": True, "schema": {"type": "object"}}
    whole = echo.post(CHAT, say("x", response_format={"type": "json_schema", "json_schema": schema}))
    assert (whole.status, "warning" in whole.json, "X-LM-Warning" in whole.headers) == (200, False, False)


def test_what_is_no_text_names_the_field_that_holds_it(echo: Daemon) -> None:
    picture = [{"type": "image_url", "image_url": {"url": "data:"}}]
    told = echo.post(CHAT, say("x", messages=[{"role": "user", "content": picture}])).json["error"]
    assert told["param"] == "messages" and "`image_url`" in told["message"]
    told = echo.post("/v1/embeddings", {"model": "tiny", "input": {"content": picture}}).json["error"]
    assert told["param"] == "input" and "`image_url`" in told["message"]


def test_an_empty_list_of_prompts_is_not_told_to_be_split(echo: Daemon) -> None:
    told = echo.post("/v1/completions", {"model": "tiny", "prompt": []}).json["error"]
    assert told["message"] == "`prompt` is empty (send a text or token ids)"


@pytest.mark.parametrize(("route", "asked"), [(CHAT, {}), ("/v1/completions", {"prompt": "one two"})])
def test_times_come_with_every_piece_where_they_are_wanted(echo: Daemon, route: str, asked: dict[str, Any]) -> None:
    body = (asked | {"model": "tiny", "max_tokens": 9} if asked else say("one two")) | {"timings_per_token": True}
    whole = echo.post(route, body).json
    events = echo.post(route, body | {"stream": True}).events
    assert "warning" not in whole and all("warning" not in event for event in events)
    counted = [event["timings"]["predicted_n"] for event in events]
    assert counted == sorted(counted) and counted[0] == 0
    for last in (whole["timings"], events[-1]["timings"]):
        assert last["predicted_n"] == whole["usage"]["completion_tokens"] == counted[-1]
        assert last["prompt_n"] + last["cache_n"] == whole["usage"]["prompt_tokens"]
    assert "timings" not in echo.post(route, body | {"timings_per_token": False}).json


def test_wishes_about_a_stream_need_one(echo: Daemon) -> None:
    wishes = {"include_usage": False, "chunk_tokens": 3}
    streamed = echo.post(CHAT, say("x", stream=True, stream_options=wishes))
    assert "`stream_options.chunk_tokens`" in streamed.events[0]["warning"]
    refused = echo.post(CHAT, say("x", stream_options=wishes))
    assert (refused.status, refused.json["error"]["param"]) == (400, "stream_options")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"model": "tiny", "messages": {"messages": []}}, "messages"),
        ({"model": "tiny", "messages": [{"role": 1, "content": "x"}]}, "messages"),
        ({"model": "tiny", "message": [{"role": "user", "content": "x"}]}, "messages"),
        (say("x", temperature="hot"), "temperature"),
    ],
)
def test_a_body_that_does_not_match_names_its_field(echo: Daemon, body: dict[str, Any], field: str) -> None:
    answer = echo.post(CHAT, body)
    assert (answer.status, answer.json["error"]["param"]) == (400, field)


def test_embeddings_name_what_they_pass_over(echo: Daemon) -> None:
    extra = {"input_type": "query", "prompt_name": "q", "truncate_prompt_tokens": 5, "user": "me"}
    answer = echo.post("/v1/embeddings", {"model": "tiny", "input": "x"} | extra)
    assert answer.json["warning"] == "passed over: `input_type`, `prompt_name`, `truncate_prompt_tokens`, `user`"


@pytest.mark.parametrize(
    "path",
    ["audio/speech", "images/generations", "moderations", "fine_tuning/jobs", "assistants", "realtime", "uploads"],
)
def test_what_only_the_hosted_service_does_is_refused_by_name(echo: Daemon, path: str) -> None:
    answer = echo.post(f"/v1/{path}", {})
    assert (answer.status, answer.json["error"]["type"]) == (404, "invalid_request_error")
    assert "is not in this version of lm" in answer.json["error"]["message"]


def test_a_clean_request_has_no_warning(echo: Daemon) -> None:
    harmless = {"store": False, "service_tier": "auto", "prompt_cache_key": "a", "parallel_tool_calls": True}
    harmless |= {"min_tokens": 0, "metadata": {}}
    call = {"id": "1", "index": 0, "type": "function", "function": {"name": "f", "arguments": "{}"}}
    back = {"role": "assistant", "content": None, "refusal": None, "annotations": [], "tool_calls": [call]}
    turns = [{"role": "user", "content": "x"}, back, {"role": "tool", "tool_call_id": "1", "content": "2"}]
    answer = echo.post(CHAT, {"model": "tiny", "messages": turns} | harmless)
    assert "warning" not in answer.json and "X-LM-Warning" not in answer.headers


def test_every_optional_field_may_be_null(echo: Daemon) -> None:
    fields = [*CHAT_BODY.__struct_encode_fields__, "made_up", "user", "grammar"]
    nulls = dict.fromkeys(set(fields) - {"model", "messages"})
    assert echo.post(CHAT, say("x") | nulls).status == 200
    text = dict.fromkeys(set(TEXT_BODY.__struct_encode_fields__) - {"model", "prompt"})
    assert echo.post(TEXT, {"model": "tiny", "prompt": "x"} | text).status == 200
    embedding = {"encoding_format": None, "dimensions": None, "user": None}
    assert echo.post("/v1/embeddings", {"model": "tiny", "input": "x"} | embedding).status == 200
    assert echo.post("/rerank", {"model": "tiny", "query": "x", "documents": ["x"], "return_documents": None})


@pytest.mark.parametrize("extra", [{"max_tokens": -1}, {"max_tokens": 5.0}, {"n": 1.0}, {"repeat_penalty": 0}])
def test_numbers_as_clients_write_them(echo: Daemon, extra: dict[str, Any]) -> None:
    answer = echo.post(CHAT, say("a b c") | extra)
    assert answer.status == 200, answer.body
    assert answer.json["choices"][0]["message"]["content"] == "a b c"


def test_many_answers_take_one_place_in_the_queue(echo: Daemon) -> None:
    answer = echo.post(CHAT, say("a b", n=128)).json
    assert [choice["index"] for choice in answer["choices"]] == list(range(128))


def test_inputs_have_every_form_that_llama_server_takes(echo: Daemon) -> None:
    def count(given: Any) -> int:
        answer = echo.post("/v1/embeddings", {"model": "tiny", "input": given})
        assert answer.status == 200, answer.body
        return len(answer.json["data"])

    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    assert count([12, 34, "string", 56]) == count([5]) == count({"content": parts}) == 1
    assert count(["a", [1, 2]]) == count([[1, "b", 2], "a"]) == count([{"content": "a"}, "b"]) == 2
    for empty in ("", [], ["a", ""], [[]], {"content": []}):
        assert echo.post("/v1/embeddings", {"model": "tiny", "input": empty}).status == 400


def test_a_ranking_in_the_forms_of_three_services(echo: Daemon) -> None:
    body = {"model": "tiny", "query": "q"}
    cohere = echo.post("/v2/rerank", body | {"documents": ["a", "a b"], "max_tokens_per_doc": 4096}).json
    assert [row["index"] for row in cohere["results"]] == [1, 0]
    assert cohere["id"] and cohere["meta"]["api_version"]["version"] == "2" and "max_tokens" in cohere["warning"]
    tei = echo.post("/rerank", body | {"texts": ["a", "a b"], "return_text": True}).json
    assert [(row["index"], row["text"]) for row in tei] == [(1, "a b"), (0, "a")]
    assert tei[0]["score"] > tei[1]["score"]


def test_scores_between_0_and_1_keep_their_order(echo: Daemon) -> None:
    body = {"model": "tiny", "query": "q", "texts": ["a", "a b", "a b c"]}
    raw = echo.post("/rerank", body).json
    between = echo.post("/rerank", body | {"raw_scores": False}).json
    assert [row["index"] for row in between] == [row["index"] for row in raw]
    assert [row["score"] for row in between] == pytest.approx([1 / (1 + math.exp(-row["score"])) for row in raw])
    assert echo.post("/rerank", body | {"raw_scores": True}).json == raw


def test_a_ranking_that_must_not_cut_texts_says_that_it_does(echo: Daemon) -> None:
    body = {"model": "tiny", "query": "q", "documents": ["a", "a b"]}
    assert echo.post("/rerank", body | {"truncate": False}).json["warning"] == "passed over: `truncate`"
    assert "warning" not in echo.post("/rerank", body | {"truncate": True}).json
    texts = echo.post("/rerank", {"model": "tiny", "query": "q", "texts": ["a"], "truncate": False})
    assert texts.headers["X-LM-Warning"] == "passed over: `truncate`"
    assert "X-LM-Warning" not in echo.post("/rerank", {"model": "tiny", "query": "q", "texts": ["a"]}).headers


def test_the_list_says_how_long_a_context_may_be(echo: Daemon) -> None:
    assert echo.get("/v1/models").json["data"][0]["context_length"] == 2048
