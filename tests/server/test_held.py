"""Grammars after thinking, strict and forced calls, budgets: a real daemon, the demo model with a template of tools."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from registry.sources.opening import DEMO
from tests import templates
from tests.daemon import Daemon

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 30}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "strict": True, "parameters": SCHEMA}}
    for name in ("get_weather", "book")
]
FORM = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA}}


def with_template(folder: Path, template: str) -> Path:
    """The demo model with another chat template."""
    shutil.copytree(DEMO, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    return folder


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("held")
    with Daemon(home, runtime="llama") as daemon:
        for name, template in (
            ("thinker", templates.OPEN),
            ("caller", templates.TOOLS),
            ("looping", templates.LOOPING),
        ):
            folder = with_template(home / name, template)
            assert daemon.post("/api/pull", {"model": str(folder)}).lines[-1]["status"] == "success"
        yield daemon


def named(daemon: Daemon, name: str) -> str:
    models = daemon.get("/api/tags").json["models"]
    return str(next(row["name"] for row in models if name in row["name"]))


def ask(daemon: Daemon, name: str, **more: Any) -> Any:
    body = {"messages": [{"role": "user", "content": "Where to?"}], "max_tokens": 200, "seed": 1}
    return daemon.post("/v1/chat/completions", {"model": named(daemon, name), **body, **more})


def test_a_grammar_begins_after_thinking_that_a_budget_ends(daemon: Daemon) -> None:
    answer = ask(daemon, "thinker", response_format=FORM, thinking_budget=5)
    message = answer.json["choices"][0]["message"]
    jsonschema.validate(json.loads(message["content"]), SCHEMA)
    assert message["reasoning"]
    assert "<" not in message["content"]
    assert answer.json["choices"][0]["finish_reason"] == "stop"
    usage = answer.json["usage"]
    assert 5 <= usage["completion_tokens_details"]["reasoning_tokens"] < usage["completion_tokens"]


def test_without_thinking_the_grammar_begins_at_once(daemon: Daemon) -> None:
    for wish in ({"think": False}, {"reasoning_effort": "none"}, {"thinking_budget": 0}):
        message = ask(daemon, "thinker", response_format=FORM, **wish).json["choices"][0]["message"]
        jsonschema.validate(json.loads(message["content"]), SCHEMA)
        assert "reasoning" not in message, wish


@pytest.mark.parametrize("field", ["thinking_budget", "thinking_budget_tokens", "reasoning_budget_tokens"])
def test_a_budget_ends_thinking_by_every_spelling_and_dialect(daemon: Daemon, field: str) -> None:
    told = ask(daemon, "thinker", **{field: 4}).json["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert 4 <= told < 20
    native = {"model": named(daemon, "thinker"), "messages": [{"role": "user", "content": "Where?"}], "stream": False}
    answer = daemon.post("/api/chat", {**native, field: 4, "options": {"num_predict": 40, "seed": 1}}).json
    assert 0 < len(answer["message"]["thinking"].split()) <= 12
    assert answer["message"]["content"]


def test_a_budget_of_openrouter_and_of_anthropic(daemon: Daemon) -> None:
    for field in ({"reasoning": {"max_tokens": 3}}, {"thinking": {"type": "enabled", "budget_tokens": 3}}):
        usage = ask(daemon, "thinker", **field).json["usage"]
        assert 3 <= usage["completion_tokens_details"]["reasoning_tokens"] < 20, field
    assert "thinking_budget" in ask(daemon, "caller", thinking_budget=3).json["warning"]
    assert ask(daemon, "thinker", thinking_budget=-5).status == 400


def test_levels_that_a_template_does_not_know_are_said(daemon: Daemon) -> None:
    assert "levels" in ask(daemon, "thinker", reasoning_effort="low", thinking_budget=2).json["warning"]
    assert "warning" not in ask(daemon, "thinker", think=True, thinking_budget=2).json


@pytest.mark.parametrize("stream", [True, False])
def test_a_forced_call_has_the_models_own_form_and_the_tools_schema(daemon: Daemon, stream: bool) -> None:
    for name, more in (("caller", {}), ("thinker", {"thinking_budget": 3})):
        answer = ask(
            daemon, name, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, stream=stream, **more
        )
        choices = [event["choices"][0] for event in answer.events] if stream else [answer.json["choices"][0]]
        calls = [call for each in choices for call in each["delta" if stream else "message"].get("tool_calls", [])]
        jsonschema.validate(json.loads("".join(call["function"]["arguments"] for call in calls)), SCHEMA)
        assert choices[-1]["finish_reason"] == "tool_calls"
        assert not "".join(each["delta" if stream else "message"].get("content") or "" for each in choices).strip()


def test_several_calls_are_forced_where_the_template_takes_them(daemon: Daemon) -> None:
    counts = []
    for seed in range(8):
        answer = ask(daemon, "caller", tools=TOOLS, tool_choice="required", seed=seed).json["choices"][0]
        calls = answer["message"]["tool_calls"]
        counts.append(len(calls))
        for call in calls if answer["finish_reason"] == "tool_calls" else []:
            jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMA)
    assert max(counts) > 1


def test_n_probabilities_and_stop_strings_work_with_calls(daemon: Daemon) -> None:
    forced = {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "book"}}}
    answer = ask(daemon, "caller", **forced, n=3, logprobs=True, top_logprobs=2, parallel_tool_calls=False).json
    assert len(answer["choices"]) == 3
    for choice in answer["choices"]:
        assert choice["message"]["tool_calls"][0]["function"]["name"] == "book"
        rows = choice["logprobs"]["content"]
        assert '"book"' in "".join(row["token"] for row in rows)
        assert len(rows[0]["top_logprobs"]) == 2
    assert sum(len(each["logprobs"]["content"]) for each in answer["choices"]) == answer["usage"]["completion_tokens"]
    # As with llama-server and vLLM, a stop string ends the text that the model writes, whatever part it is.
    stopped = ask(daemon, "caller", **forced, stop=['"arguments"']).json["choices"][0]
    assert stopped["finish_reason"] == "stop"
    assert "tool_calls" not in stopped["message"]
    thought = ask(daemon, "thinker", stop=[" "]).json["choices"][0]
    assert (thought["finish_reason"], thought["message"]["content"]) == ("stop", "")
