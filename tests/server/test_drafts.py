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
    with Daemon(home, script={"drafts": [9, 7, REASON]}) as daemon:
        yield daemon


def test_both_dialects_tell_what_was_drafted(drafting: Daemon) -> None:
    ollama = drafting.post("/api/chat", {**SAID, "stream": False}).json
    assert (ollama["draft_n"], ollama["draft_n_accepted"]) == (9, 7)
    usage = drafting.post("/v1/chat/completions", SAID).json["usage"]
    details = usage["completion_tokens_details"]
    assert (details["accepted_prediction_tokens"], details["rejected_prediction_tokens"]) == (7, 2)


def test_loaded_models_tell_it_too(drafting: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    drafting.post("/api/chat", SAID)
    wait_until(lambda: drafting.get("/api/ps").json["models"][0]["drafts"] == REASON, 3)
    (row,) = drafting.get("/api/ps").json["models"]
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
