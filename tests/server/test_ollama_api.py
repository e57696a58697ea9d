"""Ollama's dialect over HTTP, with the scripted engine: `tiny` answers with the words of the last message."""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Any

import msgspec
import pytest

from server.api.lm.advise import AdviseBody
from server.api.lm.pulls import StopBody
from server.api.ollama.bodies import GenerateBody, OllamaChatBody
from server.api.ollama.embeddings import EmbedBody, OldEmbedBody
from server.api.ollama.models import PullBody, ShowBody
from server.api.request import ModelBody
from tests.daemon import Daemon, allowed


def say(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], **more}


def test_the_root_is_what_health_checks_look_for(echo: Daemon) -> None:
    assert echo.get("/").body == b"Ollama is running"
    assert echo.ask("HEAD", "/").status == 200
    assert echo.ask("HEAD", "/api/version").status == 200


def test_the_version_is_three_numbers_that_clients_accept(echo: Daemon) -> None:
    answer = echo.get("/api/version").json
    assert re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+", answer["version"])
    assert [int(part) for part in answer["version"].split(".")] >= [0, 14, 0]
    assert answer["lm"]


def test_tags_have_every_field_of_the_right_type(echo: Daemon) -> None:
    (row,) = echo.listed()
    assert row["name"] == row["model"] == "tiny:F32"
    assert re.fullmatch("[0-9a-f]{64}", row["digest"])
    assert isinstance(row["size"], int)
    assert datetime.fromisoformat(row["modified_at"]).tzinfo
    for key in ("format", "family", "parameter_size", "quantization_level"):
        assert isinstance(row["details"][key], str)
    assert row["capabilities"] == ["completion"]
    assert row["reason"] == "a test wants it"


def test_a_bare_name_is_in_the_list_as_clients_look_for_it(echo: Daemon) -> None:
    """`llm -m tiny` takes the names of the list, and those that end in `:latest` without it."""
    rows = {row["name"]: row for row in echo.get("/api/tags").json["models"]}
    assert set(rows) == {"tiny:F32", "tiny:latest"}
    assert rows["tiny:latest"]["digest"] == rows["tiny:F32"]["digest"]
    for name in ("tiny:latest", "library/tiny", "library/tiny:F32"):
        assert echo.post("/api/show", {"model": name}).status == 200


@pytest.mark.parametrize("path", ["//api/chat", "/api/chat/", "/api//chat", "//v1//chat/completions/"])
def test_slashes_too_many_change_nothing(echo: Daemon, path: str) -> None:
    assert echo.post(path, say("x")).status == 200
    assert echo.get(path).status == 405
    assert echo.get("//v1/models/tiny/").json["id"] == "tiny"
    assert echo.ask("HEAD", "/api/tags/").status == 200


@pytest.mark.parametrize("key", ["model", "name"])
def test_show_has_what_clients_read(echo: Daemon, key: str) -> None:
    shown = echo.post("/api/show", {key: "tiny"}).json
    assert shown["model_info"]["general.architecture"] == "llama"
    assert shown["model_info"]["llama.context_length"] == 2048
    assert shown["model_info"]["general.basename"] == "tiny"
    assert shown["details"]["family"] == "llama"
    assert "stop" in shown["parameters"]
    assert '"<end>"' in shown["parameters"]
    assert "tools" not in shown["template"].lower()
    assert shown["capabilities"] == ["completion"]
    assert shown["tensors"][0]["name"] == "token_embd.weight"


def test_generate_streams_lines_that_end_in_done(echo: Daemon) -> None:
    answer = echo.post("/api/generate", {"model": "tiny", "prompt": "hello there", "raw": True})
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    assert "".join(line["response"] for line in answer.lines) == "hello there"
    assert [line["done"] for line in answer.lines] == [False, False, True]
    last = answer.lines[-1]
    assert last["done_reason"] == "stop"
    assert (last["prompt_eval_count"], last["eval_count"]) == (2, 2)
    assert last["total_duration"] >= last["load_duration"] >= 0
    assert all(datetime.fromisoformat(line["created_at"]).tzinfo for line in answer.lines)


def test_generate_gives_the_context_back_unless_raw(echo: Daemon) -> None:
    last = echo.post("/api/generate", {"model": "tiny", "prompt": "a b c"}).lines[-1]
    assert last["context"][:3] == [0, 1, 2]
    further = echo.post("/api/generate", {"model": "tiny", "prompt": "d", "context": [7, 8]}).lines[-1]
    assert further["context"][:3] == [7, 8, 0]
    assert further["prompt_eval_count"] == 3
    assert "context" not in echo.post("/api/generate", {"model": "tiny", "prompt": "a", "raw": True}).lines[-1]


def test_chat_streams_messages(echo: Daemon) -> None:
    lines = echo.post("/api/chat", say("one two three")).lines
    assert "".join(line["message"]["content"] for line in lines) == "one two three"
    assert all(line["message"]["role"] == "assistant" for line in lines)
    assert all(line["model"] == "tiny" for line in lines)
    assert lines[-1]["done"]


def test_without_a_stream_there_is_one_object(echo: Daemon) -> None:
    answer = echo.post("/api/chat", say("one two", stream=False))
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert answer.json["message"] == {"role": "assistant", "content": "one two"}
    assert answer.json["done"]


def test_options_reach_the_engine(echo: Daemon) -> None:
    last = echo.post("/api/chat", say("a b c d", options={"num_predict": 2, "temperature": 0, "seed": 5})).lines[-1]
    assert (last["done_reason"], last["eval_count"]) == ("length", 2)
    stopped = echo.post("/api/chat", say("a b c d", stream=False, options={"stop": [" c"]})).json
    assert stopped["message"]["content"] == "a b"
    own = echo.post("/api/chat", say("a <end> d", stream=False)).json
    assert own["message"]["content"] == "a "  # the model's own stop


def test_nothing_asked_loads_and_keep_alive_zero_unloads(echo: Daemon) -> None:
    assert echo.post("/api/chat", {"model": "tiny", "messages": []}).json["done_reason"] == "load"
    assert [row["model"] for row in echo.get("/api/ps").json["models"]] == ["tiny:F32"]
    unloaded = echo.post("/api/generate", {"model": "tiny", "prompt": "", "keep_alive": 0}).json
    assert (unloaded["done"], unloaded["done_reason"]) == (True, "unload")
    assert echo.get("/api/ps").json["models"] == []


def test_ps_tells_the_true_context_and_when_the_model_leaves(echo: Daemon) -> None:
    echo.post("/api/chat", say("x", keep_alive="10m"))
    (row,) = echo.get("/api/ps").json["models"]
    assert row["name"] == row["model"] == "tiny:F32"
    assert row["context_length"] == 2048
    left = datetime.fromisoformat(row["expires_at"]) - datetime.now().astimezone()
    assert 590 < left.total_seconds() <= 600
    echo.post("/api/chat", say("x", keep_alive=-1))
    (row,) = echo.get("/api/ps").json["models"]
    assert datetime.fromisoformat(row["expires_at"]).year > 2100


def test_a_larger_context_than_trained_is_clamped_and_told(echo: Daemon) -> None:
    last = echo.post("/api/chat", say("x", options={"num_ctx": 131_072})).lines[-1]
    assert last["num_ctx"] == 2048
    before = echo.workers()
    assert "num_ctx" not in echo.post("/api/chat", say("x", options={"num_ctx": 1024})).lines[-1]
    assert echo.workers() == before


@pytest.mark.parametrize(
    ("path", "extra"),
    [
        ("/api/chat", {"tools": [{"type": "function"}]}),
        ("/api/chat", {"format": "yaml"}),
        ("/api/chat", {"format": [{"type": "object"}]}),
        ("/api/chat", {"format": "json", "grammar": 'root ::= "a"'}),
        ("/api/chat", {"grammar": {"type": "peg", "value": "a"}}),
        ("/api/chat", {"grammar": {"type": "regex"}}),
        ("/api/chat", {"grammar": "x" * (1 << 21)}),
        ("/api/chat", {"think": True}),
        ("/api/chat", {"think": "high"}),
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}),
        ("/api/chat", {"options": {"temperature": "hot"}}),
        ("/api/chat", {"options": {"temperature": -1}}),
        ("/api/chat", {"options": {"top_k": 1.5}}),
        ("/api/chat", {"options": {"seed": 10**30}}),
        ("/api/chat", {"options": {"num_ctx": 0.5}}),
        ("/api/chat", {"options": {"stop": [1]}}),
        ("/api/chat", {"options": {"stop": ["x"] * 17}}),
        ("/api/chat", {"keep_alive": "soon"}),
        ("/api/chat", {"messages": "hello"}),
        ("/api/chat", {"messages": [{"content": "no role"}]}),
        ("/api/chat", {"logprobs": True, "top_logprobs": 21}),
        ("/api/generate", {"prompt": "x", "images": ["aGk="]}),
        ("/api/generate", {"prompt": "x", "suffix": "y"}),
        ("/api/generate", {"prompt": "x", "raw": True, "system": "s"}),
        ("/api/generate", {"prompt": 5}),
        ("/api/embed", {"input": 5}),
        ("/api/embed", {"input": "x", "dimensions": 9}),
        ("/api/show", {"model": ""}),
        ("/api/chat", {"messages": [{"role": "critic", "content": "x"}]}),
        ("/api/chat", {"options": {"grammar": "x"}}),
        ("/api/chat", {"options": {"num_gpu": "all"}}),
        ("/api/chat", {"options": {"use_mmap": 5}}),
        ("/api/chat", {"num_predict": 5}),
        ("/api/generate", {"prompt": "x", "json_schema": {"type": "object"}}),
    ],
)
def test_what_cannot_be_honoured_is_a_400_that_says_so(echo: Daemon, path: str, extra: dict[str, Any]) -> None:
    answer = echo.post(path, say("x") | extra if path == "/api/chat" else {"model": "tiny"} | extra)
    assert answer.status == 400, answer.body
    told = answer.json
    assert told["error"]
    assert not told["error"].endswith(".")
    assert told["hint"]


@pytest.mark.parametrize(
    "extra",
    [
        {"think": False, "tools": [], "format": ""},
        {"think": None, "tools": None, "format": None, "options": None, "keep_alive": None},
        {"options": {"num_gpu": 1, "num_thread": 4, "unheard_of": {}, "top_k": None, "num_ctx": 0}},
        {"messages": [{"role": "user", "content": "x", "images": [], "tool_calls": None}]},
    ],
)
def test_what_asks_for_nothing_is_fine(echo: Daemon, extra: dict[str, Any]) -> None:
    assert echo.post("/api/chat", say("x") | extra).status == 200


def test_embed_gives_a_vector_for_each_input(echo: Daemon) -> None:
    one = echo.post("/api/embed", {"model": "tiny", "input": "a b"}).json
    assert (one["embeddings"], one["prompt_eval_count"]) == ([[1.0] + [0.0] * 7], 2)
    assert len(echo.post("/api/embed", {"model": "tiny", "input": ["a", "b"]}).json["embeddings"]) == 2
    assert echo.post("/api/embed", {"model": "tiny"}).json["embeddings"] == []


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/show", "/api/embed", "/lm/stop"])
def test_an_unknown_model_is_a_404_with_the_way_out(echo: Daemon, path: str) -> None:
    answer = echo.post(path, {"model": "demo"})
    assert (answer.status, answer.json["code"]) == (404, "model_not_found")
    assert "`lm pull demo`" in answer.json["hint"]


def test_a_model_can_be_deleted_once(echo: Daemon) -> None:
    assert echo.ask("DELETE", "/api/delete", {"model": "nothing"}).status == 404


def test_stop_says_whether_there_was_something_to_stop(echo: Daemon) -> None:
    echo.post("/api/chat", {"model": "tiny"})
    assert echo.post("/lm/stop", {"model": "tiny"}).json == {
        "model": "tiny:F32",
        "stopped": True,
        "paused": False,
        "models": [{"model": "tiny:F32", "state": "stopped"}],
    }
    assert not echo.post("/lm/stop", {"model": "tiny"}).json["stopped"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nope", 404), ("PUT", "/api/tags", 405)])
def test_routes_that_are_not_there(echo: Daemon, method: str, path: str, status: int) -> None:
    answer = echo.ask(method, path)
    assert answer.status == status
    assert answer.json["hint"]


def test_every_answer_has_a_request_id(echo: Daemon) -> None:
    assert echo.get("/api/tags", **{"X-Request-Id": "abc123"}).headers["X-Request-Id"] == "abc123"
    assert echo.get("/nope", **{"X-Request-Id": "with space"}).headers["X-Request-Id"].isalnum()
    assert "[abc123]" in echo.log


@pytest.mark.parametrize("path", ["/api/me", "/api/no", "/api/messages"])
def test_routes_that_are_not_there_yet_are_said(echo: Daemon, path: str) -> None:
    answer = echo.post(path, {"model": "tiny"})
    assert (answer.status, answer.json["code"]) == (404, "no_such_route")
    assert ("not in this version" in answer.json["error"]) == (
        path not in ("/api/no", "/api/messages")
    ) and answer.json["hint"]


def test_anthropics_clients_are_told_in_their_own_form(echo: Daemon) -> None:
    answer = echo.post("/v1/messages/batches", {"requests": []})
    assert (answer.status, answer.json["type"]) == (404, "error")
    assert (
        answer.json["error"]["type"] == "not_found_error" and "not in this version" in answer.json["error"]["message"]
    )


def test_options_that_do_not_exist_are_passed_over_with_a_warning(echo: Daemon) -> None:
    def warned(path: str, **options: Any) -> str:
        asked = {"model": "tiny", "prompt": "one two"} if path == "/api/generate" else say("one two")
        body = asked | {"stream": False, "options": options}
        answer = echo.post(path, body)
        assert answer.status == 200 and answer.json["done"]
        return str(answer.json.get("warning", ""))

    assert warned("/api/chat", temperature=0, num_gpu=1, num_thread=4, num_ctx=64, stop=["x"]) == ""
    assert "`temperture` (did you mean `temperature`?)" in warned("/api/chat", temperture=0)
    assert "`num_keep`" in warned("/api/generate", num_keep=5)
    assert "and 1992 more" in warned("/api/generate", **{f"o{number}": 1 for number in range(2000)})


def test_fields_that_are_passed_over_are_named(echo: Daemon) -> None:
    told = echo.post("/api/chat", say("x", verbose=True, sytem="x", stream=False)).json
    assert told["warning"] == "passed over: `verbose`, `sytem` (did you mean `stream`?)"
    assert echo.post("/api/chat", say("x", insecure=False, verbose=None)).lines[-1].get("warning") is None
    loaded = echo.post("/api/generate", {"model": "tiny", "insecure": True, "options": {"nope": 1}}).json
    assert loaded["warning"] == "passed over: `insecure`, `nope` (unknown)"
    turn = {"role": "user", "content": "x", "priority": 2}
    said = echo.post("/api/chat", {"model": "tiny", "stream": False, "messages": [turn]}).json
    assert said["warning"] == "passed over: `messages[].priority`"


def test_one_slip_among_many_names_costs_nothing(echo: Daemon) -> None:
    options = {f"unheard_of_option_number_{number}": 1 for number in range(20_000)} | {"x" * 1_000_000: 1}
    began = time.monotonic()
    assert echo.post("/api/chat", say("x", options=options, stream=False)).json["warning"]
    assert time.monotonic() - began < allowed(1)


def test_numbers_and_durations_as_clients_write_them(echo: Daemon) -> None:
    assert echo.post("/api/chat", say("a b", options={"num_predict": -3, "repeat_penalty": 0})).status == 200
    for keep_alive in ("", "1d", "99999999h"):
        assert echo.post("/api/chat", say("a", keep_alive=keep_alive)).status == 200
        assert echo.get("/api/ps").status == 200
    assert (
        echo.ask("POST", "/api/chat", b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud83d"}]}').status
        == 200
    )


@pytest.mark.parametrize(
    ("method", "path", "hint"),
    [
        ("GET", "/api/tag", "did you mean `/api/tags`?"),
        ("POST", "/api/chats", "did you mean `/api/chat`?"),
        ("GET", "/somewhere/else", "GET /openapi.json lists all routes"),
        ("GET", "/" + "a" * 7000, "GET /openapi.json lists all routes"),
        ("GET", "/api/chat", "send POST"),
        ("POST", "/api/tags", "send GET or HEAD"),
    ],
)
def test_a_route_that_is_not_there_points_to_one_that_is(daemon: Daemon, method: str, path: str, hint: str) -> None:
    answer = daemon.ask(method, path, {} if method == "POST" else None)
    assert answer.status in (404, 405) and answer.json["hint"] == hint


@pytest.mark.parametrize(
    ("path", "field", "value", "hint"),
    [
        ("/api/embed", "prompt", "hello", "`input`"),
        ("/api/embeddings", "input", "hello", "`prompt`"),
        ("/api/generate", "messages", [{"role": "user", "content": "hello"}], "/api/chat"),
        ("/api/chat", "prompt", "hello", "/api/generate"),
    ],
)
def test_a_question_in_the_field_of_another_route_is_not_lost(
    echo: Daemon, path: str, field: str, value: Any, hint: str
) -> None:
    answer = echo.post(path, {"model": "tiny", field: value})
    assert answer.status == 400 and f"`{field}`" in answer.json["error"] and hint in answer.json["hint"]
    assert echo.post(path, {"model": "tiny", field: value[:0]}).status == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", lambda text: say(text)),
        ("/api/generate", lambda text: {"model": "tiny", "prompt": text, "raw": True}),
        ("/v1/completions", lambda text: {"model": "tiny", "prompt": text}),
    ],
)
def test_more_text_than_a_worker_takes_is_a_413_with_the_limit(echo: Daemon, path: str, body: Any) -> None:
    answer = echo.post(path, body("word " * (17 << 20 >> 2)))
    assert (answer.status, b"16 MiB" in answer.body) == (413, True)


def test_a_relative_path_does_not_tell_where_the_daemon_is(echo: Daemon) -> None:
    answer = echo.post("/api/generate", {"model": "../elsewhere", "prompt": "a"})
    assert answer.status == 404
    assert answer.json["hint"].endswith("`lm pull ../elsewhere` brings it in")


def test_an_endless_number_is_refused(echo: Daemon) -> None:
    answer = echo.post("/api/generate", {"model": "tiny", "prompt": "a", "context": [10**30]})
    assert (answer.status, "64 bits" in answer.json["error"]) == (400, True)


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/api/chat", OllamaChatBody),
        ("/api/generate", GenerateBody),
        ("/api/embed", EmbedBody),
        ("/api/embeddings", OldEmbedBody),
        ("/api/show", ShowBody),
        ("/lm/stop", StopBody),
        ("/lm/default", ModelBody),
        ("/api/pull", PullBody),
        ("/lm/advise", AdviseBody),
    ],
)
def test_every_optional_field_may_be_null(echo: Daemon, path: str, shape: type[msgspec.Struct]) -> None:
    nulls = dict.fromkeys([*shape.__struct_encode_fields__, "made_up"])
    model = "nowhere" if path in ("/api/pull", "/lm/advise") else "tiny"
    answer = echo.post(path, nulls | {"model": model})
    if model == "nowhere":
        assert answer.body.count(b"source_unavailable") == 1, answer.body
    else:
        assert answer.status == 200, answer.body
    assert b"warning" not in answer.body
