"""Drafts as apps see them: switched by a request, fed by a prediction, counted in answers and beside loaded models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cli.commands.ps import print_loaded
from server.api import options
from tests.daemon import Daemon, put_model, wait_until

SAID = {"model": "tiny", "messages": [{"role": "user", "content": "one two"}]}
REASON = "7 of 9 drafted tokens were accepted"


@pytest.fixture(scope="module")
def drafting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("drafts")
    put_model(home)
    put_model(home, "coder", capabilities=("completion", "insert"))
    with Daemon(home, script={"drafts": [9, 7, REASON]}) as daemon:
        yield daemon


def test_all_dialects_tell_what_was_drafted(drafting: Daemon) -> None:
    ollama = drafting.post("/api/chat", {**SAID, "stream": False}).json
    assert (ollama["draft_n"], ollama["draft_n_accepted"]) == (9, 7)
    usage = drafting.post("/v1/chat/completions", SAID).json["usage"]
    details = usage["completion_tokens_details"]
    assert (details["accepted_prediction_tokens"], details["rejected_prediction_tokens"]) == (7, 2)
    usage = drafting.post("/v1/responses", {"model": "tiny", "input": "one"}).json["usage"]
    assert usage["output_tokens_details"]["accepted_prediction_tokens"] == 7
    usage = drafting.post("/v1/messages", {**SAID, "max_tokens": 9}).json["usage"]
    assert usage["output_tokens_details"]["rejected_prediction_tokens"] == 2
    timings = drafting.post("/completion", {"model": "tiny", "prompt": "one"}).json["timings"]
    assert (timings["draft_n"], timings["draft_n_accepted"]) == (9, 7)


PROMPTS = {
    "/api/chat": SAID,
    "/api/generate": {"model": "tiny", "prompt": "one"},
    "/v1/chat/completions": SAID,
    "/v1/completions": {"model": "tiny", "prompt": "one"},
    "/v1/responses": {"model": "tiny", "input": "one"},
    "/v1/messages": {**SAID, "max_tokens": 9},
    "/completion": {"model": "tiny", "prompt": "one"},
    "/infill": {"model": "coder", "input_prefix": "one", "input_suffix": "two"},
}


@pytest.mark.parametrize("path", PROMPTS)
def test_a_draft_is_named_and_bounded_in_every_dialect(drafting: Daemon, path: str) -> None:
    body = {**PROMPTS[path], "stream": False}
    model = body["model"]
    refused = drafting.post(path, body | {"draft": model})
    assert refused.status == 400 and f"`{model}:F32` cannot draft for itself" in refused.body.decode()
    assert drafting.post(path, body | {"draft": "nobody"}).status == 404
    bound: dict[str, Any] = {"draft_num_predict": 0}
    assert "warning" not in drafting.post(path, body | ({"options": bound} if "/api/" in path else bound)).json
    bound["draft_num_predict"] = -3
    refused = drafting.post(path, body | ({"options": bound} if "/api/" in path else bound))
    assert refused.status == 400 and "draft_num_predict" in refused.body.decode()


@pytest.mark.parametrize("path", ["/completion", "/infill"])
def test_llama_servers_own_field_bounds_a_draft(drafting: Daemon, path: str) -> None:
    body = {**PROMPTS[path], "stream": False}
    assert "warning" not in drafting.post(path, body | {"speculative.n_max": 4}).json
    assert "`speculative.p_min`" in drafting.post(path, body | {"speculative.p_min": 0.5}).json["warning"]
    refused = drafting.post(path, body | {"speculative.n_max": "many"})
    assert refused.status == 400 and "speculative.n_max" in refused.body.decode()


def test_loaded_models_tell_it_too(drafting: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    drafting.post("/api/chat", SAID)

    def tiny() -> Any:
        return next(row for row in drafting.get("/api/ps").json["models"] if row["name"] == "tiny:F32")

    wait_until(lambda: tiny()["drafts"] == REASON, 30)
    row = tiny()
    assert (row["drafted"], row["draft_accepted"]) == (9, 7)
    print_loaded([row], wide=False)
    assert f"tiny:F32: drafts: {REASON}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "prediction",
    [{"type": "content", "content": "one two"}, {"type": "content", "content": [{"type": "text", "text": "one two"}]}],
    ids=["text", "parts"],
)
def test_a_prediction_is_honoured(drafting: Daemon, prediction: dict[str, Any]) -> None:
    answer = drafting.post("/v1/chat/completions", {**SAID, "prediction": prediction})
    assert answer.status == 200 and "warning" not in answer.json


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prediction", {"type": "grammar", "content": "a"}),
        ("prediction", {"type": "content"}),
        ("prediction", {"type": "content", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}),
        ("draft_num_predict", -1),
        ("draft_num_predict", 1.5),
    ],
)
def test_a_prediction_or_a_number_that_is_none_is_refused(drafting: Daemon, field: str, value: Any) -> None:
    answer = drafting.post("/v1/chat/completions", {**SAID, field: value})
    assert answer.status == 400


def test_ollamas_option_is_checked(drafting: Daemon) -> None:
    body = {**SAID, "stream": False, "options": {"draft_num_predict": "many"}}
    answer = drafting.post("/api/chat", body)
    assert answer.status == 400 and "draft_num_predict" in answer.json["error"]
    assert "warning" not in drafting.post("/api/chat", body | {"options": {"draft_num_predict": 0}}).json


def test_a_request_goes_before_a_model_in_the_length_of_drafts() -> None:
    assert options.drafts({}, {}) == -1
    assert options.drafts({"draft_num_predict": 4}, {}) == 4
    assert options.drafts({"draft_num_predict": 4}, {"draft_num_predict": 0}) == 0
