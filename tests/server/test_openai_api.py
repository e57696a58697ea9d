"""Shapes of OpenAI's dialect, over HTTP, with the scripted engine."""

from __future__ import annotations

from typing import Any

import pytest

from tests.daemon import Daemon

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def say(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], **more}


def test_models_are_listed_and_found(echo: Daemon) -> None:
    listed = echo.get("/v1/models").json
    assert [entry["id"] for entry in listed["data"]] == ["tiny:F32"]
    assert echo.get("/v1/models/tiny").json["id"] == "tiny"
    missing = echo.get("/v1/models/org/none")
    assert (missing.status, missing.json["error"]["type"]) == (404, "not_found_error")


def test_a_chat_completion(echo: Daemon) -> None:
    answer = echo.post(CHAT, say("one two")).json
    assert answer["object"] == "chat.completion"
    (choice,) = answer["choices"]
    assert choice["message"]["content"] == "one two"
    assert choice["finish_reason"] == "stop"
    assert answer["usage"] | {"prompt_tokens_details": 0} == {
        "prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4, "prompt_tokens_details": 0,
    }  # fmt: skip


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
        {"response_format": {"type": "json_object"}},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
        {"messages": []},
        {"n": 0},
        {"n": 9},
        {"temperature": -1},
        {"top_p": 2},
        {"stop": ["x"] * 17},
        {"max_tokens": -1},
        {"logit_bias": {"many": 1}},
        {"logprobs": True, "top_logprobs": 21},
        {"modalities": ["audio"]},
        {"model": None},
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
    assert (answer.status, answer.json["error"]["code"]) == (400, "prompt_too_long")
    assert "5001" in answer.json["error"]["message"]
    assert "2048" in answer.json["error"]["message"]


def test_routes_that_are_not_there_are_told_in_the_same_dialect(echo: Daemon) -> None:
    assert echo.get("/v1/nope").json["error"]["type"] == "not_found_error"
    assert echo.get(CHAT).status == 405
