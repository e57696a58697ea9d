"""Structured output through a real daemon, with the clients' own packages; and what cannot be kept."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, Literal

import ollama
import openai
import pytest
from pydantic import BaseModel, Field

from tests.daemon import Daemon, allowed

SHORT = {"num_predict": 400, "seed": 1}


class Place(BaseModel):
    city: str = Field(max_length=20)
    zip: str = Field(pattern="^[0-9]{5}$")


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)
    kind: Literal["friend", "stranger"]
    home: Place | None
    tags: list[Literal["red", "green"]] = Field(max_length=3)


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=1, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    loud: bool


class Pet(BaseModel):
    animal: Cat | Dog = Field(discriminator="kind")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("structured"), runtime="llama") as daemon:
        assert daemon.post("/api/pull", {"model": "demo"}).lines[-1]["status"] == "success"
        yield daemon


@pytest.fixture(scope="module")
def standard(daemon: Daemon) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.slow
def test_openai_parses_a_model_of_pydantic(standard: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Who is Ann?"}]
    answer = standard.chat.completions.parse(
        model="demo", messages=messages, response_format=Person, max_tokens=400, seed=1
    )
    assert isinstance(answer.choices[0].message.parsed, Person)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 10


def test_openai_streams_any_object(standard: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Some JSON, please"}]
    form: Any = {"type": "json_object"}
    chunks = standard.chat.completions.create(
        model="demo", messages=messages, response_format=form, max_tokens=200, seed=3, stream=True
    )
    found = list(chunks)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in found)
    assert text.startswith("{")
    if found[-1].choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_ollama_keeps_a_schema_of_pydantic_streamed_or_whole(daemon: Daemon) -> None:
    with ollama.Client(host=daemon.url) as client:
        form = Person.model_json_schema()
        whole = client.chat("demo", [{"role": "user", "content": "Who is Ann?"}], format=form, options=SHORT)
        assert Person.model_validate_json(whole.message.content or "")
        assert whole.done_reason == "stop"
        parts = list(client.generate("demo", "Who is Ann?", format=form, options=SHORT, stream=True))
        assert Person.model_validate_json("".join(part.response for part in parts))
        properties = list(json.loads("".join(part.response for part in parts)))
        assert properties == ["name", "age", "kind", "home", "tags"]


def test_a_tagged_union_is_one_of_its_models(daemon: Daemon) -> None:
    with ollama.Client(host=daemon.url) as client:
        told = client.generate("demo", "A pet", format=Pet.model_json_schema(), options=SHORT)
        assert Pet.model_validate_json(told.response).animal.kind in ("cat", "dog")


@pytest.mark.parametrize("grammar", ['root ::= "yes" | "no"', {"type": "lark", "value": 'start: "yes" | "no"'},
                                     {"type": "regex", "value": "yes|no"}])  # fmt: skip
def test_both_dialects_take_a_grammar(daemon: Daemon, grammar: Any) -> None:
    fields = {"model": "demo", "prompt": "Is it?", "grammar": grammar, "stream": False}
    assert daemon.post("/api/generate", fields).json["response"] in ("yes", "no")
    assert daemon.post("/v1/completions", fields).json["choices"][0]["text"] in ("yes", "no")
    chat = {"messages": [{"role": "user", "content": "Is it?"}], **fields}
    del chat["prompt"]
    assert daemon.post("/v1/chat/completions", chat).json["choices"][0]["message"]["content"] in ("yes", "no")


def test_one_of_two_types_is_kept_behind_a_reference_too(daemon: Daemon) -> None:
    place = {"oneOf": [{"type": "integer", "maximum": 9, "minimum": 0}, {"$ref": "#/$defs/point"}]}
    point = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 2, "maxItems": 2}
    schema = {"type": "object", "properties": {"p": place}, "required": ["p"], "$defs": {"point": point}}
    messages = [{"role": "user", "content": "x"}]
    body = {"model": "demo", "messages": messages, "format": schema, "stream": False, "options": SHORT}
    found = json.loads(daemon.post("/api/chat", body).json["message"]["content"])["p"]
    assert isinstance(found, int) or len(found) == 2


def nested(depth: int) -> str:
    return '{"a":' * depth + "{}" + "}" * depth


HOSTILE: dict[str, Any] = {
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "$ref": {"$ref": "http://127.0.0.1:9/schema.json"},
    "not": {"type": "object", "properties": {"a": {"not": {}}}},
    "pattern": {"type": "string", "pattern": "(a{1000}){1000}"},
    "multipleOf": {"type": "integer", "multipleOf": 99_991},
    "minProperties": {"type": "object", "minProperties": 3, "patternProperties": {"^a$": {}}},
    "format": {"type": "string", "format": "iri"},
    "oneOf": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
}


@pytest.mark.parametrize("keyword", HOSTILE)
def test_a_schema_that_cannot_be_kept_is_refused_with_the_keywords_name(daemon: Daemon, keyword: str) -> None:
    messages = [{"role": "user", "content": "x"}]
    told = daemon.post("/api/chat", {"model": "demo", "messages": messages, "format": HOSTILE[keyword]})
    assert told.status == 400
    assert f"`{keyword}`" in told.json["error"]
    assert "option" not in told.json["error"]  # the grammar compiler's own, which no request can set
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": HOSTILE[keyword]}}
    fields = {"model": "demo", "messages": messages, "response_format": form, "stream": True}
    told = daemon.post("/v1/chat/completions", fields)
    assert told.status == 400
    assert f"`{keyword}`" in told.json["error"]["message"]
    assert told.json["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "fields",
    [
        {"format": {"$ref": "#"}},
        {"grammar": "root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000},
        {"grammar": 'root ::= root | root "a'},
        {"grammar": 'foo ::= "a"'},
        {"grammar": {"type": "lark", "value": "start: start"}},
        {"grammar": {"type": "lark", "value": "start: " + "(" * 60_000}},
        {"grammar": {"type": "lark", "value": "".join(f"r{n}: r{n + 1}\n" for n in range(20_000))}},
        {"grammar": {"type": "lark", "value": 'start: "a"{1000000}'}},
        {"grammar": {"type": "regex", "value": "(" * 60_000}},
        {"grammar": {"type": "regex", "value": "(a{1000}){1000}"}},
        {"grammar": {"type": "regex", "value": "a{99999999999}"}},
        {"grammar": {"type": "regex", "value": "(?=a)b"}},
    ],
)
def test_a_hostile_grammar_is_a_400_and_the_worker_lives(daemon: Daemon, fields: dict[str, Any]) -> None:
    before = daemon.workers()
    started = time.monotonic()
    told = daemon.post("/api/generate", {"model": "demo", "prompt": "x", **fields})
    assert told.status == 400, told.body
    assert time.monotonic() - started < allowed(5)
    assert daemon.workers() == before or not before
    assert daemon.post("/api/generate", {"model": "demo", "prompt": "x", "options": {"num_predict": 2}}).status == 200


def test_deep_brackets_and_bytes_that_are_no_text_are_a_400(daemon: Daemon) -> None:
    start = b'{"model": "demo", "prompt": "x", "format": '
    for form in (nested(60_000).encode(), b'{"type": "\xff\xfe"}'):
        assert daemon.ask("POST", "/api/generate", start + form + b"}").status == 400


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {f"property {n}": {"type": "boolean"} for n in range(1000)}},
        {"enum": [f"value number {n}" for n in range(10_000)]},
        {"type": "object", "properties": {"child": {"$ref": "#"}}, "additionalProperties": False},
        {"$defs": {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(5000)} | {"d5000": {"type": "null"}},
         "$ref": "#/$defs/d0"},
    ],
    ids=["1,000 properties", "10,000 values", "recursion", "5,000 references"],
)  # fmt: skip
def test_a_large_schema_is_kept(daemon: Daemon, schema: dict[str, Any]) -> None:
    started = time.monotonic()
    fields = {"model": "demo", "prompt": "x", "format": schema, "stream": False, "options": {"num_predict": 3}}
    assert daemon.post("/api/generate", fields).status == 200
    assert time.monotonic() - started < allowed(10)


def test_a_schema_that_goes_on_for_ever_ends_for_length(daemon: Daemon) -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 10**9}
    fields = {"model": "demo", "prompt": "x", "format": schema, "stream": False, "options": {"num_predict": 20}}
    assert daemon.post("/api/generate", fields).json["done_reason"] == "length"
