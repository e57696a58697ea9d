"""Filling in over HTTP, in three dialects, with the scripted engine: the answer is all that the request says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.daemon import Daemon, put_model


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("infill")
    put_model(home, "coder", capabilities=("completion", "insert"))
    put_model(home, "plain")
    with Daemon(home, script={"echo": True}) as daemon:
        yield daemon


def test_a_suffix_in_ollamas_and_openais_dialect(echo: Daemon) -> None:
    fields = {"model": "coder", "prompt": "before", "suffix": "after"}
    assert echo.post("/api/generate", {**fields, "stream": False}).json["response"] == "before  after"
    assert "".join(line["response"] for line in echo.post("/api/generate", fields).lines) == "before  after"
    assert echo.post("/v1/completions", fields).json["choices"][0]["text"] == "before  after"
    events = echo.post("/v1/completions", {**fields, "stream": True}).events
    assert "".join(event["choices"][0]["text"] for event in events) == "before  after"


def test_a_model_that_cannot_says_so_and_what_can_is_told(echo: Daemon) -> None:
    fields = {"model": "plain", "prompt": "a", "suffix": "b"}
    hole = {"model": "plain", "input_prefix": "a", "input_suffix": "b"}
    for path, body in (("/api/generate", fields), ("/v1/completions", fields), ("/infill", hole)):
        told = echo.post(path, body)
        assert told.status == 400
        assert b"does not support insert" in told.body
    assert "insert" in echo.post("/api/show", {"model": "coder"}).json["capabilities"]
    assert ".Suffix" in echo.post("/api/show", {"model": "coder"}).json["template"]
    assert ".Suffix" not in echo.post("/api/show", {"model": "plain"}).json["template"]
    rows = {row["name"]: row["capabilities"] for row in echo.get("/api/tags").json["models"]}
    assert {name for name, each in rows.items() if "insert" in each} == {name for name in rows if "coder" in name}


def infill(**more: Any) -> dict[str, Any]:
    extra = [{"filename": "a.py", "text": "A"}, {"text": "B"}]
    return {"input_prefix": "x", "input_suffix": "y", "input_extra": extra, "prompt": "so", "n_predict": 9, **more}


def test_llama_servers_clients_fill_in(echo: Daemon) -> None:
    """As llama.vim asks: without a model, with limits of time, and for some fields alone."""
    answer = echo.post(
        "/infill", infill(stream=False, samplers=["top_k"], t_max_predict_ms=500, cache_prompt=True)
    ).json
    assert (answer["content"], answer["stop"], answer["stop_type"]) == ("x so y a.py tmp", True, "eos")
    assert answer["tokens_predicted"] == answer["timings"]["predicted_n"] == 5
    assert not answer["truncated"]
    assert "warning" not in answer
    some = echo.post("/infill", infill(response_fields=["content", "timings/prompt_n", "nothing"])).json
    assert some == {"content": "x so y a.py tmp", "timings/prompt_n": 1}
    cut = echo.post("/infill", infill(n_predict=2)).json
    assert (cut["content"], cut["stop_type"]) == ("x so", "limit")


def test_it_streams_as_llama_server_does(echo: Daemon) -> None:
    raw = echo.post("/infill", infill(stream=True)).body
    events = [json.loads(part.removeprefix(b"data: ")) for part in raw.split(b"\n\n") if part]
    assert "".join(event["content"] for event in events) == "x so y a.py tmp"
    assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]


@pytest.mark.parametrize(
    "body",
    [
        {"input_suffix": None},
        {"input_prefix": None},
        {"input_extra": [{"filename": "a"}]},
        {"input_extra": "a"},
        {"prompt": 5},
        {"n_predict": "many"},
        {"grammar": "root ::= x"},
        {"model": "none"},
    ],
    ids=lambda body: next(iter(body)) + str(list(body.values()))[:8],
)
def test_what_is_no_hole_is_a_400_or_404(echo: Daemon, body: dict[str, Any]) -> None:
    told = echo.post("/infill", infill() | body)
    assert told.status == (404 if "model" in body else 400)
    assert told.json["error"]["message"]
