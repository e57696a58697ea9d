"""llama-server's routes, over HTTP, with the scripted engine; bodies as its own tests and clients send them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.daemon import Answer, Daemon, put_model


def events(answer: Answer) -> list[Any]:
    """The objects of a stream, which has no closing `[DONE]` in this dialect."""
    return [json.loads(part.removeprefix(b"data: ")) for part in answer.body.split(b"\n\n") if part]


def complete(daemon: Daemon, prompt: Any = "one two", **more: Any) -> Answer:
    return daemon.post("/completion", {"prompt": prompt, **more})


def test_a_completion_has_figures_settings_and_the_prompt(echo: Daemon) -> None:
    whole = complete(echo, "one two", n_predict=1, temperature=0.5, seed=42, return_tokens=True).json
    assert (whole["content"], whole["stop"], whole["stop_type"]) == ("one", True, "limit")
    assert whole["tokens"] == [0]
    assert (whole["tokens_evaluated"], whole["tokens_predicted"], whole["truncated"]) == (2, 1, False)
    assert whole["has_new_line"] is False
    assert whole["timings"]["predicted_n"] == 1
    settings = whole["generation_settings"]
    assert (settings["n_predict"], settings["temperature"], settings["seed"]) == (1, 0.5, 42)
    assert whole["model"] == "tiny:F32"
    assert complete(echo).json["tokens"] == []
    assert complete(echo, "a stop b", stop=["stop"]).json["stopping_word"] == "stop"
    assert complete(echo, "a\nb").json["has_new_line"] is True


def test_a_stream_has_pieces_with_their_tokens_and_one_last_object(echo: Daemon) -> None:
    answer = complete(echo, "a b c", stream=True)
    assert answer.headers["Content-Type"] == "text/event-stream"
    *pieces, last = events(answer)
    assert "".join(piece["content"] for piece in pieces) == "a b c"
    assert [piece["tokens"] for piece in pieces] == [[0], [1], [2]]
    assert not any(piece["stop"] for piece in pieces)
    assert (last["stop"], last["stop_type"], last["content"]) == (True, "eos", "")


def test_times_come_with_every_piece_where_they_are_wanted(echo: Daemon) -> None:
    *pieces, last = events(complete(echo, "a b c", stream=True, timings_per_token=True))
    assert [piece["timings"]["predicted_n"] for piece in [*pieces, last]] == [1, 2, 3, 3]
    assert ["prompt_ms" in piece["timings"] for piece in [*pieces, last]] == [False, False, False, True]
    assert last["generation_settings"]["timings_per_token"] is True and "warning" not in last
    assert all("timings" not in piece for piece in events(complete(echo, "a b", stream=True))[:-1])


def test_a_prompt_may_be_a_text_tokens_both_an_object_or_several(echo: Daemon) -> None:
    assert complete(echo, [1, 2, 3]).json["tokens_evaluated"] == 3
    assert complete(echo, [1, "a b", 2]).json["content"] == "a b"
    assert complete(echo, {"prompt_string": "a"}).json["content"] == "a"
    several = complete(echo, ["a", [1, 2], {"prompt_string": "b"}]).json
    assert [each["index"] for each in several] == [0, 1, 2]
    assert [each["content"] for each in several] == ["a", "", "b"]
    twice = complete(echo, "a", n_cmpl=2).json
    assert [each["content"] for each in twice] == ["a", "a"]


def test_only_the_wanted_fields_come(echo: Daemon) -> None:
    paths = ["content", "generation_settings/n_predict", "prompt", "nothing"]
    some = complete(echo, "a b", n_predict=8, response_fields=paths).json
    assert some == {"content": "a b", "generation_settings/n_predict": 8, "prompt": "01"}


@pytest.mark.parametrize(
    "given",
    [[[0, -100]], [["word", -1.5]], {"0": 2}, {" word ": -100}, [[5, False]]],
    ids=["pair", "text", "object", "object of texts", "forbidden"],
)
def test_biases_have_three_forms(echo: Daemon, given: Any) -> None:
    settings = complete(echo, logit_bias=given).json["generation_settings"]
    assert len(settings["logit_bias"]) >= 1


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": None},
        {"prompt": []},
        {"prompt": [[]]},
        {"prompt": [["a", 1.5]]},
        {"prompt": [-1]},
        {"prompt": {"prompt_string": "a", "multimodal_data": ["x"]}},
        {"prompt": {"text": "a"}},
        {"logit_bias": [["a"]]},
        {"logit_bias": 5},
        {"logit_bias": [[0, True]]},
        {"grammar": 'root ::= "a"', "json_schema": {}},
        {"json_schema": 5},
        {"n_predict": "many"},
        {"n_probs": 1000},
        {"n_cmpl": 0},
        {"messages": [{"role": "user", "content": "a"}]},
        {"max_tokens": 5},
        {"lora": [{"id": 0, "scale": 1}]},
    ],
    ids=str,
)
def test_what_cannot_be_completed_is_a_400_in_its_form(echo: Daemon, body: dict[str, Any]) -> None:
    answer = echo.post("/completion", {"prompt": "a"} | body)
    assert answer.status == 400
    error = answer.json["error"]
    assert set(error) == {"code", "message", "type"}
    assert error["code"] == 400
    assert error["type"] in ("invalid_request_error", "not_supported_error")


def test_a_prompt_that_is_too_long_has_both_numbers(echo: Daemon) -> None:
    error = complete(echo, "word " * 5000).json["error"]
    assert error["type"] == "exceed_context_size_error"
    assert error["n_prompt_tokens"] > error["n_ctx"] > 0
    assert "exceeds the available context size" in error["message"]


def test_what_is_not_honoured_is_named(echo: Daemon) -> None:
    named = complete(echo, id_slot=1, post_sampling_probs=True, samplers=["top_k"], cache_prompt=False)
    for field in ("id_slot", "post_sampling_probs", "samplers"):
        assert field in named.json["warning"]
        assert field in named.headers["X-LM-Warning"]
    assert "warning" not in complete(echo, id_slot=-1, cache_prompt=True, n_keep=0).json


def test_texts_become_tokens_and_back(echo: Daemon) -> None:
    assert echo.post("/tokenize", {"content": "a b"}).json == {"tokens": [0, 1]}
    pieces = echo.post("/tokenize", {"content": "a b", "with_pieces": True}).json
    assert pieces == {"tokens": [{"id": 0, "piece": "a"}, {"id": 1, "piece": " b"}]}
    assert echo.post("/tokenize", {"content": [7, "a"]}).json == {"tokens": [7, 0]}
    assert echo.post("/tokenize", {"content": ""}).json == {"tokens": []}
    assert echo.post("/detokenize", {"tokens": [4, 2]}).json == {"content": "42"}
    assert echo.post("/detokenize", {"tokens": [-1]}).status == 400
    assert echo.post("/tokenize", {"content": {}}).status == 400


def test_the_prompt_of_a_chat_is_shown_and_counted(echo: Daemon) -> None:
    body = {"messages": [{"role": "user", "content": "one two three"}]}
    assert echo.post("/apply-template", body).json == {"prompt": "one two three"}
    assert echo.post("/v1/chat/completions/input_tokens", body).json["input_tokens"] == 3


def test_rows_of_embeddings(echo: Daemon) -> None:
    for path in ("/embedding", "/embeddings"):
        rows = echo.post(path, {"content": "a"}).json
        assert [(row["index"], len(row["embedding"]), len(row["embedding"][0])) for row in rows] == [(0, 1, 8)]
    several = [1, 2], "a", {"prompt_string": "b"}, {"content": [{"type": "text", "text": "c"}]}, [1, "d"]
    for path in ("/embeddings", "/v1/embeddings"):
        answer = echo.post(path, {"input": [*several]})
        assert answer.status == 200, answer.body
        rows = answer.json if path == "/embeddings" else answer.json["data"]
        assert len(rows) == len(several)
    assert echo.post("/embeddings", {"input": ""}).status == 200
    for bad in ([], None, {"content": [{"type": "image_url"}]}, {"multimodal_data": 1, "prompt_string": "a"}, [[-1]]):
        assert echo.post("/embeddings", {"input": bad}).status == 400


def test_its_state_is_told_and_not_changed(echo: Daemon) -> None:
    complete(echo)
    props = echo.get("/props").json
    assert props["total_slots"] == len(echo.get("/slots?model=tiny").json)
    assert props["default_generation_settings"]["params"]["temperature"] == 0.7
    assert (props["model_alias"], props["is_sleeping"]) == ("tiny:F32", False)
    assert all(row["n_ctx"] > 0 and row["is_processing"] is False for row in echo.get("/slots").json)
    assert echo.get("/slots?fail_on_no_slot=1").status == 200
    assert echo.get("/lora-adapters").json == []
    assert echo.get("/v1/health").json["status"] == "ok"
    for path in ("/props", "/slots/0?action=save", "/lora-adapters"):
        refused = echo.post(path, {})
        assert (refused.status, refused.json["error"]["type"]) == (400, "not_supported_error")


def test_bare_paths_and_bodies_without_a_model(echo: Daemon) -> None:
    """As llama-server's clients ask, whose server has one model."""
    assert echo.get("/models").json == echo.get("/v1/models").json
    talk = {"messages": [{"role": "user", "content": "a b"}]}
    for path in ("/chat/completions", "/v1/chat/completions"):
        answer = echo.post(path, talk).json
        assert answer["choices"][0]["message"]["content"] == "a b"
        assert answer["model"] == "tiny:F32"
    assert echo.post("/v1/completions", {"prompt": "a"}).json["model"] == "tiny:F32"
    assert echo.post("/v1/embeddings", {"input": "a"}).json["model"] == "tiny:F32"
    assert echo.post("/v1/rerank", {"query": "a", "documents": ["b"]}).json["model"] == "tiny:F32"
    chat = echo.post("/api/chat", talk | {"stream": False}).json
    assert (chat["model"], chat["message"]["content"]) == ("tiny:F32", "a b")
    assert echo.post("/api/generate", {"prompt": "a", "stream": False}).json["model"] == "tiny:F32"
    assert echo.post("/api/embed", {"input": "a"}).json["model"] == "tiny:F32"
    for path in ("/api/show", "/api/pull"):
        assert echo.post(path, {}).status == 400, "what changes or names a model needs its name"


def test_among_several_models_the_loaded_one_is_meant(tmp_path: Any) -> None:
    put_model(tmp_path, "one")
    put_model(tmp_path, "two", capabilities=("completion", "insert"))
    with Daemon(tmp_path, script={"echo": True}) as daemon:
        refused = daemon.post("/v1/completions", {"prompt": "a"})
        assert refused.status == 400
        assert "`one:F32`" in refused.json["error"]["message"]
        assert "`two:F32`" in refused.json["error"]["message"]
        assert complete(daemon, "a").status == 400
        assert complete(daemon, "a", model="two").status == 200
        assert daemon.post("/v1/completions", {"prompt": "a"}).json["model"] == "two:F32"
        assert complete(daemon, "a").json["model"] == "two:F32"
