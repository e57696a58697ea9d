"""Answers that are held to a grammar: by a real worker, with the demo model and with SmolLM2 where it is installed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from runtime import messages as m
from runtime.options import Limits, Sampling
from tests.runtime.ties import assert_same_but_for_ties
from tests.runtime.working import Answer, load_frame, working

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "address": {
            "type": "object",
            "properties": {
                "street": {"type": "string", "maxLength": 20},
                "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
            },
            "required": ["street", "zip"],
            "additionalProperties": False,
        },
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
    },
    "required": ["name", "age", "address", "tags"],
    "additionalProperties": False,
}


def schema(value: Any) -> m.Grammar:
    return m.Grammar("schema", json.dumps(value))


def asked(grammar: m.Grammar, tokens: int = 300, seed: int = 1, **more: Any) -> m.Submit:
    sampling = more.pop("sampling", None) or Sampling(seed=seed)
    limits = Limits(max_tokens=tokens)
    return m.Submit(0, prompt="Once upon a time", grammar=grammar, sampling=sampling, limits=limits, **more)


def ask(path: Path, *requests: m.Submit, **load: Any) -> list[Answer]:
    async def run() -> list[Answer]:
        async with working(load_frame(path, **load)) as worker:
            return await asyncio.gather(*(worker.ask(request) for request in requests))

    return asyncio.run(run())


def test_an_answer_has_the_form_of_its_schema_whatever_the_seed(demo: Path) -> None:
    for answer in ask(demo, *(asked(schema(PERSON), seed=seed) for seed in range(8))):
        assert isinstance(answer.end, m.Finished)
        assert answer.end.reason == "stop"
        jsonschema.validate(json.loads(answer.text), PERSON)
        assert answer.end.answer_tokens == sum(delta.tokens for delta in answer.deltas)


def test_eight_streams_keep_eight_schemas(demo: Path) -> None:
    schemas = [
        {
            "type": "object",
            "properties": {f"key_{n}": {"type": "integer"}},
            "required": [f"key_{n}"],
            "maxProperties": 1,
        }
        for n in range(8)
    ]
    answers = ask(demo, *(asked(schema(each)) for each in schemas))
    for each, answer in zip(schemas, answers, strict=True):
        assert isinstance(answer.end, m.Finished)
        if answer.end.reason == "stop":
            jsonschema.validate(json.loads(answer.text), each)
    assert sum(answer.end.reason == "stop" for answer in answers) >= 4  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        (m.Grammar("gbnf", 'root ::= "yes" | "no"'), ("yes", "no")),
        (m.Grammar("lark", 'start: "yes" | "no"'), ("yes", "no")),
        (m.Grammar("regex", "yes|no"), ("yes", "no")),
        (m.Grammar("gbnf", 'root ::= "only " ("this" | "this")'), ("only this",)),
        (m.Grammar("schema", '{"const": {"long key": [1, 2.5, null, "ä"]}}'), ('{"long key": [1, 2.5, null, "ä"]}',)),
    ],
)
def test_every_kind_of_grammar_is_kept(demo: Path, grammar: m.Grammar, text: tuple[str, ...]) -> None:
    (answer,) = ask(demo, asked(grammar))
    assert isinstance(answer.end, m.Finished)
    assert (answer.text in text, answer.end.reason) == (True, "stop")


def test_any_object_is_json(demo: Path) -> None:
    for answer in ask(demo, *(asked(m.Grammar("json"), seed=seed) for seed in range(4))):
        assert isinstance(answer.end, m.Finished)
        assert answer.text.startswith("{")
        if answer.end.reason == "stop":
            assert isinstance(json.loads(answer.text), dict)


def test_a_cut_answer_says_length(demo: Path) -> None:
    answers = ask(demo, *(asked(schema(PERSON), tokens) for tokens in (0, 1, 2, 9)))
    for tokens, answer in zip((0, 1, 2, 9), answers, strict=True):
        assert isinstance(answer.end, m.Finished)
        assert (answer.end.reason, answer.end.answer_tokens) == ("length", tokens)


def test_an_answer_that_is_whole_at_its_last_token_says_stop(demo: Path) -> None:
    grammar = m.Grammar("schema", '{"const": "a certain text"}')
    (whole,) = ask(demo, asked(grammar))
    assert isinstance(whole.end, m.Finished)
    (exact,) = ask(demo, asked(grammar, whole.end.answer_tokens))
    assert isinstance(exact.end, m.Finished)
    assert (exact.text, exact.end.reason) == (whole.text, "stop")


def test_probabilities_stop_strings_and_several_answers_go_on_working(demo: Path) -> None:
    stopping = asked(schema(PERSON))
    stopping.limits = Limits(max_tokens=300, stop=['"age"'])
    plain, told, stopped, several = ask(
        demo,
        asked(schema(PERSON), sampling=Sampling(temperature=0)),
        asked(schema(PERSON), sampling=Sampling(temperature=0), logprobs=20),
        stopping,
        asked(schema(PERSON), count=3, sampling=Sampling(seed=5, repeat_penalty=1.3, top_k=20)),
        context=2048,
    )
    rows = [row for delta in told.deltas for row in delta.logprobs]
    assert isinstance(told.end, m.Finished)
    assert len(rows) == told.end.answer_tokens
    assert "".join(row.token for row in rows) == told.text
    assert all(row.logprob <= 0 and len(row.top) == 20 for row in rows)
    # Where probabilities are told, forced tokens take a step each; so the steps of the two differ in size.
    assert_same_but_for_ties(rows, plain.text)
    assert isinstance(stopped.end, m.Finished)
    assert stopped.end.stop == '"age"'
    assert stopped.text.endswith(", ")
    jsonschema.validate(json.loads(several.text), PERSON)


def test_the_same_seed_gives_the_same_answer(demo: Path) -> None:
    first, second = (ask(demo, asked(schema(PERSON), seed=3))[0] for _ in range(2))
    assert first.text == second.text
