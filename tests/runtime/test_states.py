"""Models whose memory is not a plain cache: recurrent, hybrid, with sliding windows. Small random ones from the zoo."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.gguf.header import read_file
from runtime import messages as m
from runtime.conversation import Turn
from runtime.machine import fit
from runtime.machine.inspection import ask_reserved
from runtime.options import Limits, Sampling
from tests.quant.zoo import ZOO
from tests.quant.zoo.making import make
from tests.quant.zoo.sketched import SKETCHES
from tests.quant.zoo.sketched import make as sketch
from tests.runtime.conftest import convert
from tests.runtime.test_engine import GREEDY, WARM, ask, load, one_by_one, submit, with_worker
from tests.runtime.working import Answer, Worker

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]
WHOLE = (
    "mamba",
    "lfm2",
    "granitehybrid",
    "falcon-h1",
    "qwen35",
    "qwen35moe",
    "qwen3next",
    "kimi-linear",
    "rwkv6",
    "rwkv7",
)
WINDOWS = ("gemma2", "gemma3", "gemma3n")
# With weights as strong as the zoo's, half-precision attention makes another text now and then by rounding alone.
SPREADS = {"gemma2": 1.0, "gemma3": 1.0, "qwen3next": 1.0}
# Tied, it says the last token again and again, and llama-cpp-python counts no token that is half a character.
UNTIED = ("gemma3n",)
RANDOM = np.random.default_rng(3)
# Windows are 48 tokens wide.
PROMPTS = [RANDOM.integers(3, 4096, size).tolist() for size in (5, 60, 150)]
ORACLE = """
import json, sys
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=512, n_threads=1, n_threads_batch=1, flash_attn=True, verbose=False, seed=1)
texts = []
for prompt in json.loads(sys.argv[2]):
    model.reset()
    texts.append(model.create_completion(prompt, max_tokens=24, temperature=0)["choices"][0]["text"])
print(json.dumps(texts))
"""


@pytest.fixture(scope="module", params=[*WHOLE, *WINDOWS])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    if kind in SKETCHES:
        return convert(sketch(SKETCHES[kind], folder / "source"), folder / "model.gguf", "F32")
    row = ZOO[kind]._replace(spread=SPREADS.get(kind, ZOO[kind].spread))
    if kind in UNTIED:
        row = row._replace(config={**row.config, "tie_word_embeddings": False})
    return convert(make(row, folder / "source"), folder / "model.gguf", "F32")


def ids(answer: Answer) -> list[int]:
    return [entry.id for delta in answer.deltas for entry in delta.logprobs]


def test_text_is_that_of_llama_cpp_python(model: Path) -> None:
    command = [sys.executable, "-c", ORACLE, str(model), json.dumps(PROMPTS)]
    texts = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    answers = one_by_one(load(model, context=512), *(submit(prompt, 24) for prompt in PROMPTS))
    # Llama leaves out bytes that are no text, where we show that there was something.
    assert [answer.text.replace("�", "") for answer in answers] == texts
    assert any(texts)


def test_a_conversation_goes_on_from_its_state(model: Path, kind: str) -> None:
    async def talk(worker: Worker) -> tuple[list[Answer], list[int]]:
        sampling = Sampling(temperature=0.0, ignore_eos=True)
        first = await worker.ask(submit(PROMPTS[1], 10, sampling=sampling, logprobs=1))
        longer = [*PROMPTS[1], *ids(first), *PROMPTS[0]]
        warm = await worker.ask(submit(longer, 16, sampling=WARM))
        other = await worker.ask(submit(PROMPTS[1][:40], 4, sampling=WARM))
        fresh = await worker.ask(submit(longer, 16, sampling=GREEDY))
        return [first, warm, other, fresh], ids(first)

    (first, warm, other, fresh), said = with_worker(load(model, context=512, kv_type="F32"), talk)
    assert len(said) == first.end.answer_tokens == 10
    assert warm.started.cached == 60 + 9  # the last token was drawn and not read
    assert fresh.started.cached == 0
    assert warm.text == fresh.text
    # What cannot be cut shares nothing in the middle.
    assert other.started.cached == (0 if kind in WHOLE else 39)


def test_the_cache_by_formula_is_llama_cpps(model: Path) -> None:
    header, config = read_file(model), m.CacheConfig(1024, 4)
    said = ask_reserved(header.metadata, header.tensors, config)
    assert said is not None
    assert fit.memory(fit.ModelSize.of(header.metadata), 0, config).cache == pytest.approx(said.cache, rel=0.05)


def test_crowds_cancels_and_full_pools_leave_it_alive(model: Path) -> None:
    async def talk(worker: Worker) -> list[Any]:
        async def leave(prompt: list[int]) -> Any:
            end = None
            async for frame in worker.frames(submit(prompt, 200, sampling=WARM)):
                if isinstance(frame, m.Started):
                    await worker.child.send(m.Cancel(frame.id))
                end = frame
            return end

        prompts = [RANDOM.integers(3, 4096, 20 + 17 * i % 160).tolist() for i in range(16)]
        stays = [worker.ask(submit(prompt, 30, sampling=WARM, shift=True)) for prompt in prompts]
        leaves = [leave(prompt[::-1]) for prompt in prompts]
        answers = await asyncio.gather(*stays, *leaves)
        vectors = await worker.ask(m.Embed(0, inputs=[prompts[0], prompts[1]]))
        again = await worker.ask(submit(PROMPTS[1], 8))
        return [*answers[:16], again, vectors.end, *answers[16:]]

    (again,) = ask(load(model, context=512), submit(PROMPTS[1], 8))
    found = with_worker(load(model, context=256, sequences=4), talk)
    assert all(answer.end.reason in ("length", "stop") for answer in found[:17])
    assert isinstance(found[17], m.Vectors)
    assert {end.reason for end in found[18:]} <= {"cancelled", "stop", "length"}
    assert found[16].text == again.text


def test_a_chat_computes_what_is_new_even_where_the_answer_was_changed(model: Path, kind: str) -> None:
    def submit_turns(turns: list[Turn], sampling: Sampling) -> m.Submit:
        return m.Submit(0, turns=turns, sampling=sampling, limits=Limits(max_tokens=12))

    async def talk(worker: Worker) -> list[tuple[Answer, Answer]]:
        turns = [Turn.of("system", "You are a sailor who has seen the seven seas. " * 3)]
        pairs = []
        for question in ("Tell me of a storm.", "And of the calm after it?", "What did the captain say?"):
            turns.append(Turn.of("user", question))
            await worker.ask(submit_turns([*turns[:-1], Turn.of("user", "Something else.")], WARM))
            warm = await worker.ask(submit_turns(turns, WARM))
            pairs.append((warm, await worker.ask(submit_turns(turns, GREEDY))))
            # As templates do that trim answers, or leave out how they were thought of.
            turns.append(Turn.of("assistant", "Well, " + warm.text.strip()[2:]))
        return pairs

    pairs = with_worker(load(model, context=1024, kv_type="F32"), talk)
    lengths = [cold.end.prompt_tokens for _, cold in pairs]
    computed = [warm.end.prompt_tokens - warm.end.cached for warm, _ in pairs]
    assert [cold.end.cached for _, cold in pairs] == [0, 0, 0]
    assert [warm.text for warm, _ in pairs] == [cold.text for _, cold in pairs]
    # What was said since the question before, and what asks for the answer.
    for before, now, count in zip(lengths, lengths[1:], computed[1:], strict=False):
        assert count <= now - before + 8, (lengths, computed)


def test_answers_to_one_prompt_share_it(model: Path) -> None:
    async def talk(worker: Worker) -> list[Answer]:
        return await asyncio.gather(*(worker.ask(submit(PROMPTS[2], 8, sampling=WARM)) for _ in range(4)))

    answers = with_worker(load(model, context=1024, kv_type="F32"), talk)
    assert sorted(answer.end.cached for answer in answers) == [0, 149, 149, 149]
    assert len({answer.text for answer in answers}) == 1
