from __future__ import annotations

from collections.abc import Iterator

import pytest

import quant.errors
import registry.errors
import runtime.errors
import server.errors
from server.audit.sending import OtherLog
from server.collector import SentUnknown
from server.errors import ChildError
from server.http.problems import STATUS, Problem
from server.settings import BadSetting

# Errors that a command of the user's tells, and no route.
OF_COMMANDS = {OtherLog.code, SentUnknown.code}
TREES = (quant.errors.QuantError, registry.errors.RegistryError, runtime.errors.EngineError, server.errors.ServerError)


def descendants(base: type[Exception]) -> Iterator[type[Exception]]:
    yield base
    for child in base.__subclasses__():
        yield from descendants(child)


ALL = [error for tree in TREES for error in descendants(tree)]


def test_the_table_has_every_code_and_no_other() -> None:
    codes = {error.code for error in [*ALL, *descendants(BadSetting)]}  # type: ignore[attr-defined]
    assert set(STATUS) == codes - OF_COMMANDS | {"internal"}


def test_no_code_is_used_twice() -> None:
    codes = [error.code for error in ALL]  # type: ignore[attr-defined]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("error", ALL)
def test_every_error_is_told_in_all_dialects(error: type[Exception]) -> None:
    problem = Problem.of(error("it broke", "mend it"))
    assert problem.body("ollama") == {"error": "it broke", "hint": "mend it", "code": problem.code}
    told = problem.body("openai")["error"]
    assert told["message"].endswith("it broke (mend it)")
    renamed = {
        runtime.errors.PromptTooLong.code: "context_length_exceeded",
        server.errors.Unauthorized.code: "invalid_api_key",
        server.errors.RateLimited.code: "rate_limit_exceeded",
        server.errors.QuotaUsed.code: "insufficient_quota",
    }
    assert (told["code"], told["param"]) == (renamed.get(problem.code, problem.code), None)
    other = problem.body("anthropic", "r1")
    assert (other["type"], other["request_id"]) == ("error", "r1")
    assert other["error"]["message"].endswith("it broke (mend it)")
    assert 400 <= problem.status("ollama") < 600


def test_the_type_follows_the_status() -> None:
    def kind(error: Exception) -> str:
        return str(Problem.of(error).body("openai")["error"]["type"])

    for unknown in (registry.errors.ModelNotFound, server.errors.Unauthorized, server.errors.Forbidden):
        assert kind(unknown("")) == "invalid_request_error"
    assert kind(server.errors.RateLimited("")) == "rate_limit_error"
    assert kind(server.errors.QuotaUsed("")) == "insufficient_quota"
    assert kind(runtime.errors.BadRequest("")) == "invalid_request_error"
    assert kind(runtime.errors.QueueFull("")) == "rate_limit_error"
    assert kind(runtime.errors.WorkerDied("")) == "server_error"


def test_anthropics_types_follow_its_own_statuses() -> None:
    def told(error: Exception) -> tuple[int, str]:
        problem = Problem.of(error)
        return problem.status("anthropic"), str(problem.body("anthropic")["error"]["type"])

    assert told(runtime.errors.BadRequest("")) == (400, "invalid_request_error")
    assert told(server.errors.Unauthorized("")) == (401, "authentication_error")
    assert told(server.errors.Forbidden("")) == (403, "permission_error")
    assert told(registry.errors.ModelNotFound("")) == (404, "not_found_error")
    assert told(server.errors.BodyTooLarge("")) == (413, "request_too_large")
    assert told(server.errors.RateLimited("")) == (429, "rate_limit_error")
    assert told(runtime.errors.WorkerDied("")) == (500, "api_error")
    assert told(runtime.errors.Timeout("")) == (504, "timeout_error")
    for busy in (runtime.errors.QueueFull, server.errors.Stopping, server.errors.Unstable, registry.errors.StoreLocked):
        assert told(busy("")) == (529, "overloaded_error")


def test_ollamas_clients_find_the_words_that_they_look_for() -> None:
    missing = Problem.of(
        registry.errors.ModelNotFound("model `qwen3:8b` is not here", "`lm pull qwen3:8b` brings it in")
    )
    assert missing.body("ollama")["error"] == 'model "qwen3:8b" not found, try pulling it first'
    long = Problem.of(runtime.errors.PromptTooLong("9 tokens, 8 fit", "", "input"))
    assert "input length exceeds the context length" in long.body("ollama")["error"]


def test_a_full_queue_says_when_to_come_back() -> None:
    problem = Problem.of(runtime.errors.QueueFull("full"))
    assert (problem.status("ollama"), problem.status("openai")) == (503, 429)
    assert int(problem.headers()["Retry-After"]) > 0
    assert Problem.of(server.errors.Unstable("rests", retry_after=12.1)).headers() == {"Retry-After": "13"}
    assert Problem.of(runtime.errors.BadRequest("no")).headers() == {}


def test_the_inside_of_an_unforeseen_error_stays_inside() -> None:
    problem = Problem.of(ValueError("/home/user/secret"))
    assert (problem.code, problem.status("ollama")) == ("internal", 500)
    assert "secret" not in str(problem.body("ollama"))


def test_what_a_child_reports_is_told_as_if_it_happened_here() -> None:
    problem = Problem.of(ChildError("prompt_too_long", "9 tokens, 8 fit", "shorten it"))
    assert problem.status("openai") == 400
    assert Problem.of(ChildError("no_such_code", "?")).status("ollama") == 500
