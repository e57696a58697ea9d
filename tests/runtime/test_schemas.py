"""Random schemas: an answer that ends by itself is valid, as the `jsonschema` package judges it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from runtime import messages as m
from runtime.options import Limits, Sampling
from tests.runtime.schemas import Schemas
from tests.runtime.working import load_frame, working

STREAMS = 8


def outcomes(path: Path, schemas: list[dict[str, Any]], tokens: int) -> Counter[str]:
    """How the answers by these schemas ended: "stop", "length" or "refused"; the "stop" ones are valid."""

    async def run() -> Counter[str]:
        found: Counter[str] = Counter()
        gate = asyncio.Semaphore(STREAMS)
        async with working(load_frame(path, context=8192, sequences=STREAMS)) as worker:
            # Texts end soon, so that answers end by themselves: a quote is made likelier.
            (quote,) = (await worker.ask(m.Tokenize(0, '"'))).end.ids
            bias = {quote: 6.0}

            async def one(schema: dict[str, Any], seed: int) -> None:
                grammar = m.Grammar("schema", json.dumps(schema))
                limits, sampling = Limits(max_tokens=tokens), Sampling(seed=seed, temperature=1.0, logit_bias=bias)
                async with gate:
                    answer = await worker.ask(
                        m.Submit(0, prompt="The answer is", grammar=grammar, sampling=sampling, limits=limits)
                    )
                found[judged(schema, answer)] += 1

            await asyncio.gather(*(one(schema, seed) for seed, schema in enumerate(schemas)))
        return found

    return asyncio.run(run())


def judged(schema: dict[str, Any], answer: Any) -> str:
    if isinstance(answer.end, m.Failed):
        assert answer.end.code == "bad_request", (answer.end, schema)
        return "refused"
    assert isinstance(answer.end, m.Finished), (answer.end, schema)
    if answer.end.reason == "stop":
        try:
            jsonschema.validators.validator_for(schema)(schema).validate(json.loads(answer.text))
        except (ValueError, jsonschema.ValidationError) as error:
            pytest.fail(f"{answer.text!r} does not keep {json.dumps(schema)}: {error}")
    return answer.end.reason


def test_answers_by_random_schemas_are_valid(demo: Path) -> None:
    found = outcomes(demo, [Schemas(seed).schema() for seed in range(40)], 120)
    assert found["stop"] >= 20, found
    assert found["refused"] >= 1, found


@pytest.mark.parametrize(
    "batch", [pytest.param(n, marks=pytest.mark.long(name="schemas", sample=40)) for n in range(40)]
)
def test_answers_by_a_thousand_schemas_are_valid(smollm2: Path, batch: int) -> None:
    found = outcomes(smollm2, [Schemas(1000 + 25 * batch + n).schema() for n in range(25)], 250)
    assert found["stop"] >= 10, found
