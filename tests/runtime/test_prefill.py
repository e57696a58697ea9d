"""Prompts read in a second cache, operation by operation between steps, give what they give in the first one alone."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quant.convert.planning import plan_model
from runtime import messages as m
from runtime.cache.pool import CellPool
from runtime.cache.spill import Spill
from runtime.engine.prefill import FEW_TOKENS, MOST_ROWS, SidePrefill
from runtime.engine.prompt import Prompt
from runtime.engine.session import Session
from runtime.llama.adapters import Adapters
from runtime.llama.context import Context, ContextParams
from runtime.llama.library import LOG, library
from runtime.llama.model import LlamaModel
from runtime.text.stops import Stops
from tests.converting import write
from tests.quant.support import DEMO, Folder
from tests.runtime.test_engine import WARM, precise, submit, with_worker
from tests.runtime.working import Worker

TEXT = (Path(__file__).parents[1] / "prose.txt").read_text()
PARAMS = ContextParams(2048, 6, 4, 1, "F32")
PLENTY = 64 << 20


class Bench:
    """A model with both caches; `tokens` are a long text."""

    def __init__(self, model: LlamaModel, spill: int = PLENTY, short_context: int = 0) -> None:
        self.model = model
        self.context = Context(model, PARAMS)
        self.spill = Spill(self.context, spill)
        self.pool = CellPool(self.context, self.context.tokens, PARAMS.sequences, "cells", self.spill)
        adapters = Adapters(model, self.spill.lend, self.spill.take_back)
        self.side = SidePrefill(model, self.context, self.pool, PARAMS, adapters, short_context)
        self.tokens = model.vocabulary.tokenize(TEXT, special=False, add=True)

    def session(self, tokens: array[int]) -> Session:
        """One whose prompt is `tokens`, admitted with what the first cache holds of it."""
        session = Session(m.Submit(0, prompt=""), 0, Prompt(tokens), Stops([]))
        session.seq = self.pool.start(*self.pool.match(tokens[:-1]))
        return session

    def read(self, session: Session, count: int, number: int = 0) -> None:
        """Read `count` more of its tokens in the first cache, as steps do."""
        assert session.seq
        start = len(session.seq.tokens)
        stretch = session.tokens[start : start + count]
        self.context.put_prompt(0, memoryview(stretch), start, session.seq.number, 1)
        assert self.context.decode(len(stretch)) == 0
        self.pool.grow(session.seq, stretch)

    def finish(self, session: Session, seconds: float = 1e9) -> int:
        """Turns until only the last token is left."""
        turns = 0
        while session.pending > 1:
            self.side.advance(session, seconds)
            turns += 1
        return turns

    def next(self, session: Session) -> list[float]:
        """Logits after its last token."""
        self.read(session, 1)
        assert session.pending == 0
        logits: list[float] = self.context.logits(0).tolist()
        return logits


@pytest.fixture(scope="module")
def model(exact: Path) -> LlamaModel:
    # Sizes of buffers are read in llama.cpp's log, which other tests of this process may have turned off.
    library().llama_log_set(LOG.callback, None)
    return LlamaModel(exact)


@pytest.fixture
def bench(model: LlamaModel) -> Iterator[Bench]:
    bench = Bench(model)
    yield bench
    bench.side.close()
    bench.context.free()


@pytest.fixture(scope="module")
def alone(model: LlamaModel) -> Iterator[Bench]:
    bench = Bench(model)
    yield bench
    bench.side.close()
    bench.context.free()


def expected(alone: Bench, tokens: array[int]) -> Any:
    session = alone.session(tokens)
    while session.pending > 1:
        alone.read(session, min(MOST_ROWS, session.pending - 1))
    logits = alone.next(session)
    assert session.seq
    alone.pool.clear(session.seq)
    session.seq.busy = False
    return pytest.approx(logits, abs=5e-3)  # chunks of other sizes round by 1e-3, of a deviation of 1.9


def test_a_prompt_read_beside_steps_is_read_as_alone(bench: Bench, alone: Bench) -> None:
    answer, prompt = bench.session(bench.tokens[900:1000]), bench.session(bench.tokens[:300])
    bench.read(answer, 60)
    turns = 0
    while prompt.pending > 1:
        bench.side.advance(prompt, 0.0)  # one operation
        turns += 1
        if turns % 10 == 0 and answer.pending > 1:
            bench.read(answer, 1)
    assert turns > 3 * 100  # three chunks of at least a hundred operations
    assert bench.next(prompt) == expected(alone, prompt.tokens)
    while answer.pending > 1:
        bench.read(answer, 1)
    assert bench.next(answer) == expected(alone, answer.tokens)


def test_a_second_cache_rotates_by_the_factors_of_the_first(tmp_path: Path) -> None:
    factors = {"rope_type": "longrope", "long_factor": [8.0] * 32, "short_factor": [1.0] * 32}
    folder = Folder(DEMO).change("config.json", rope_scaling={**factors, "original_max_position_embeddings": 1024})
    write(plan_model(folder), "F32", folder.stream, tmp_path / "long.gguf", threads=1)
    model = LlamaModel(tmp_path / "long.gguf")
    bench, alone = Bench(model, short_context=1024), Bench(model)
    prompt = bench.session(bench.tokens[:300])
    assert bench.finish(prompt) == 1
    assert bench.next(prompt) == expected(alone, prompt.tokens)
    bench.side.close()


def test_it_goes_on_from_what_the_first_cache_holds(bench: Bench, alone: Bench) -> None:
    first = bench.session(bench.tokens[:600])
    bench.read(first, 500)
    second = bench.session(bench.tokens[:400] + bench.tokens[1000:1200])
    assert second.seq and len(second.seq.tokens) == 400
    assert bench.finish(second) == 1
    assert bench.next(second) == expected(alone, second.tokens)
    third = bench.session(bench.tokens[:550] + bench.tokens[1000:1300])
    bench.finish(third)
    assert bench.next(third) == expected(alone, third.tokens)


def test_who_leaves_in_the_middle_of_a_chunk_leaves_nothing_wrong(bench: Bench, alone: Bench) -> None:
    gone, stays = bench.session(bench.tokens[:500]), bench.session(bench.tokens[:200] + bench.tokens[800:1200])
    for _ in range(300):
        bench.side.advance(gone, 0.0)
    assert bench.side.busy
    assert gone.seq and gone.seq.tokens  # what was read before it is of use to whoever begins alike
    bench.side.advance(stays, 0.0)
    bench.finish(stays)
    assert bench.next(stays) == expected(alone, stays.tokens)
    bench.side.advance(gone, 0.0)
    bench.side.drop()
    assert not bench.side.busy
    bench.finish(gone)
    assert bench.next(gone) == expected(alone, gone.tokens)


def test_memory_is_lent_by_the_spill_and_given_back(bench: Bench) -> None:
    prompt = bench.session(bench.tokens[:300])
    bench.finish(prompt)
    small = bench.side.bytes
    assert 0 < small == PLENTY - bench.spill.limit
    longer = bench.session(bench.tokens[100:1400])
    bench.finish(longer)
    assert small < bench.side.bytes == PLENTY - bench.spill.limit
    bench.side.free()
    assert (bench.side.bytes, bench.spill.limit) == (0, PLENTY)


def test_what_a_window_has_left_behind_is_not_kept(bench: Bench) -> None:
    session = bench.session(bench.tokens[:300])
    bench.read(session, 200)
    assert session.seq
    for window, kept in ((100, 0), (200, 200), (0, 200)):
        spill = Spill(bench.context, PLENTY, window=window)
        spill.add(session.seq.number, session.seq.tokens)
        assert spill.match(session.tokens)[1] == kept


def test_without_memory_prompts_are_left_to_the_steps(model: LlamaModel, capfd: pytest.CaptureFixture[str]) -> None:
    bench = Bench(model, spill=1 << 20)
    prompt = bench.session(bench.tokens[:300])
    assert bench.side.suits(prompt)
    bench.side.advance(prompt, 1.0)
    assert prompt.pending == 300
    assert not bench.side.suits(prompt)
    assert "long prompts are not read beside answers: " in capfd.readouterr().err
    assert bench.spill.limit == 1 << 20
    bench.side.close()


def test_a_full_cache_is_waited_for(bench: Bench) -> None:
    holder, prompt = bench.session(bench.tokens[:1400]), bench.session(bench.tokens[600:1400])
    for _ in range(3):
        bench.read(holder, 466)
    bench.side.advance(prompt, 1e9)
    assert prompt.seq and len(prompt.seq.tokens) == bench.context.tokens - 1398
    assert bench.pool.free == 0
    assert holder.seq
    bench.pool.clear(holder.seq)
    bench.finish(prompt)
    assert len(prompt.seq.tokens) == 799


def test_short_ones_and_long_beginnings_are_left_to_the_steps(bench: Bench) -> None:
    long = bench.session(bench.tokens[:1400])
    assert bench.side.suits(long)
    assert not bench.side.suits(bench.session(bench.tokens[-FEW_TOKENS:]))
    while long.pending > FEW_TOKENS + 1:
        bench.read(long, min(512, long.pending - FEW_TOKENS - 1))
    assert not bench.side.suits(long)  # to copy 1,383 tokens takes longer than to read 17


def test_texts_beside_running_answers_are_those_alone(exact: Path) -> None:
    prompts = [f"{number} {TEXT[:900]}" for number in range(3)]
    wanted = [submit(prompt, 16, sampling=WARM) for prompt in prompts]
    long = submit(tokens=200, sampling=WARM)

    async def one_by_one(worker: Worker) -> list[str]:
        return [(await worker.ask(request)).text for request in (long, *wanted)]

    async def together(worker: Worker) -> list[str]:
        text, others, said = "", [], 0
        async for frame in worker.frames(long):
            text += getattr(frame, "text", "")
            said += isinstance(frame, m.Delta)
            if said == 2:
                others = [asyncio.create_task(worker.ask(request)) for request in wanted]
                said += 1
        return [text, *[(await other).text for other in others]]

    load = precise(exact, context=4096, spill=PLENTY)
    assert with_worker(load, together) == with_worker(load, one_by_one)
